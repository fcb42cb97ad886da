"""Question 7: shares that are recovered, labels of sentences and pairs, and what arms differ in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.questions.arm_differences import but_rate, differing
from trimtab.data import sources
from trimtab.feedback import records
from trimtab.feedback.judgement import Item
from trimtab.questions import claim as registry
from trimtab.questions import hacked_start, q07
from trimtab.questions.arm_stages import Answers
from trimtab.questions.measure import ArmResult, Measure
from trimtab.sandbox import hacked_cases
from trimtab.sandbox.gold import gold
from trimtab.sandbox.scene import Scene
from trimtab.sandbox.world_spec import WorldSpec

SETTINGS = registry.load_settings()[7]


def digests(n: int) -> list[Scene]:
    return list(WorldSpec(kinds=("digest",)).scenes(n, 6))


def item(scene: Scene, texts: list[str], index: int) -> Item:
    extra = {"scene": scene.to_json(), "kind": scene.kind}
    prompt = tuple(scene.messages())
    return Item(id=str(index), prompt=prompt, completions=tuple(texts), extra=extra)


def test_recovered_shares_by_hand() -> None:
    assert q07.recovered(0.5, 0.5, 0.9) == 0.0
    assert q07.recovered(0.9, 0.5, 0.9) == 1.0
    assert q07.recovered(0.3, 0.5, 0.9) == -0.5
    assert q07.recovered(0.9, 0.5, 0.51) == 0.0  # nothing was lost
    arms = {
        name: ArmResult({"gold": Measure(g), "sft.gold": Measure(0.6)}, {"gold": [0.1, 0.5, 0.3, 0.2]})
        for name, g in zip(SETTINGS.arms, np.linspace(0.9, 0.1, len(SETTINGS.arms)), strict=True)
    }  # fmt: skip
    arms["careful"] = ArmResult({"gold": Measure(0.9)})
    arms["hacked"] = ArmResult({"gold": Measure(0.5), "sft.gold": Measure(0.6)})
    arms["cases"] = ArmResult({"gold": Measure(0.8)})
    derived = q07.derive(arms, SETTINGS)
    assert set(derived) == set(SETTINGS.derived)
    cases = {k: m.value for k, m in derived["remedy cases"].measures.items()}
    assert cases["recovered"] == pytest.approx(0.75)
    assert cases["labels"] == SETTINGS.sizes["new_labels"]
    assert cases["per_label"] == pytest.approx(75 / SETTINGS.sizes["new_labels"])
    assert derived["remedy copying"].measures["labels"].value == 0
    assert derived["sft"].measures["gold"].value == 0.6


def test_the_best_of_several_is_chosen_by_the_reward_and_paid_in_gold() -> None:
    scores = {
        "model": np.array([[0.0, 2.0], [3.0, 1.0]]),
        "gold": np.array([[0.9, 0.1], [0.4, 0.8]]),
    }
    assert q07.best(Answers([["a", "b"]] * 2, ["ask"] * 2, scores)) == [0.1, 0.4]


def test_gold_that_follows_the_published_form_is_explained() -> None:
    kl = np.linspace(0.1, 9, 30)
    d = np.sqrt(kl)
    gold_path = 0.7 + d * (0.2 - 0.2 * np.log(d))
    assert q07.fit_of({"kl": kl.tolist(), "gold": gold_path.tolist()}) > 0.98
    noise = np.random.default_rng(0).random(30).tolist()
    assert q07.fit_of({"kl": kl.tolist(), "gold": noise}) < 0.7


def test_sentences_are_right_if_they_are_new_notes_in_own_words() -> None:
    scene = digests(1)[0]
    notes = " ".join(scene.needed)
    sentences, labels = hacked_cases.label_sentences(scene, notes)
    assert sentences == [n.removesuffix(" .") for n in scene.needed] and labels == [1, 1]
    copied = " ".join(f.sentence for f in scene.facts)
    assert set(hacked_cases.label_sentences(scene, copied)[1]) == {0}
    _, repeated = hacked_cases.label_sentences(scene, f"{scene.needed[0]} {scene.needed[0]}")
    assert repeated == [1, 0]
    assert hacked_cases.label_sentences(scene, "well , have a nice day .")[1] == [0]


def test_hacked_cases_rank_the_better_completion_first(tmp_path: Path) -> None:
    scenes = digests(6)
    right = [" ".join(s.needed) for s in scenes]
    copied = [" ".join(f.sentence for f in s.facts) for s in scenes]
    for name, texts in (("start", right), ("hacked", copied)):
        items = [item(s, [t], i) for i, (s, t) in enumerate(zip(scenes, texts, strict=True))]
        records.write(tmp_path / f"{name}.jsonl", items)
    paths = [str(tmp_path / f"{name}.jsonl") for name in ("hacked", "start")]
    assert hacked_cases.pairs(tmp_path, *paths, limit=4) == {"pairs": 4}
    rows = [row for _, row in sources.read(str(tmp_path / "rows.jsonl")).rows]
    for row, scene in zip(rows, scenes, strict=False):
        best = row["completions"][row["ranks"].index(0)]
        assert gold(scene, best).total == pytest.approx(1.0)
    assert {tuple(row["ranks"]) for row in rows} == {(0, 1), (1, 0)}


def rl(name: str) -> dict[str, Any]:
    return hacked_start.stages(SETTINGS.arms[name], SETTINGS)["rl"]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("careful", "rewards"), ("mean", "rewards"), ("worst", "rewards"), ("objectives", "rewards"),
        ("refresh", "rewards"), ("cases", "rewards"), ("beta=0.5", "method"), ("copying", "shape"),
        ("process added", "process"),
    ],
)  # fmt: skip
def test_remedies_differ_from_the_hacked_arm_in_one_key(name: str, key: str) -> None:
    one, other = rl(name), rl("hacked")
    changed = but_rate(differing(one, other))
    assert {path.split(".")[0] for path in changed} == {key}


def test_fresh_labels_and_cases_spend_as_many_pairs_of_one_policy() -> None:
    refresh, cases = (hacked_start.stages(SETTINGS.arms[x], SETTINGS) for x in ("refresh", "cases"))
    assert refresh["first"] == cases["first"]
    assert (
        refresh["new"]["limit"] == cases["new"]["options"]["limit"] == SETTINGS.sizes["new_labels"]
    )
    assert refresh["mixed"] == cases["mixed"] and refresh["rl"] == cases["rl"]
