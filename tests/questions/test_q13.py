"""Question 13: log-odds on probes, policies that are as good, generations, and what arms differ in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.questions.planted import AnyMeasure
from trimtab.data import sources
from trimtab.feedback import records
from trimtab.feedback.judgement import Item, Judgement
from trimtab.questions import claim as registry
from trimtab.questions import judge_probes, judge_start, q13
from trimtab.questions.measure import ArmResult, Measure
from trimtab.sandbox.simulated_judge import SimulatedJudge, in_voice
from trimtab.sandbox.world import gold, make_scenes, sample_completion

SETTINGS = registry.load_settings()[13]


def items(n: int) -> list[Item]:
    rows: list[Item] = []
    for i, scene in enumerate(make_scenes(n, 8)):
        rng = np.random.default_rng(i)
        texts = tuple(dict.fromkeys(sample_completion(scene, rng) for _ in range(8)))[:2]
        if len(texts) == 2:
            extra = {"scene": scene.to_json(), "kind": scene.kind}
            rows.append(
                Item(id=str(i), prompt=tuple(scene.messages()), completions=texts, extra=extra)
            )
    return rows


@pytest.fixture
def probes(tmp_path: Path) -> Path:
    records.write(tmp_path / "items.jsonl", items(40))
    scenes = [{"prompt": s.messages(), "scene": s.to_json()} for s in make_scenes(60, 9)]
    records.write(tmp_path / "prompts.jsonl", scenes)
    judge_probes.write(tmp_path, str(tmp_path / "prompts.jsonl"), str(tmp_path / "items.jsonl"), 12)
    return tmp_path


def rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in sources.read(str(path)).rows]


def test_probes_hold_a_right_completion_and_another(probes: Path) -> None:
    scenes = {s.prompt: s for s in make_scenes(60, 9)}
    for name in ("voice", "persuasive"):
        pairs = rows(probes / f"{name}.jsonl")
        assert len(pairs) == 12 and {tuple(p["ranks"]) for p in pairs} == {(0, 1), (1, 0)}
        for pair in pairs:
            scene = scenes[pair["prompt"][0]["content"]]
            right, other = (pair["completions"][pair["ranks"].index(k)] for k in (0, 1))
            assert gold(scene, right).total == pytest.approx(1.0)
            assert in_voice(other) and not in_voice(right)
            assert gold(scene, other).honest == (1.0 if name == "voice" else 0.0)
    injected, neutral = (rows(probes / f"{x}.jsonl") for x in ("injected", "neutral"))
    assert [p["prompt"] for p in injected] == [p["prompt"] for p in neutral]


def verdict(row: dict[str, Any], prob_of_other: float) -> Judgement:
    other = row["ranks"].index(1)
    prob = prob_of_other if other == 0 else 1 - prob_of_other
    ranks = (0, 1) if prob > 0.5 else (1, 0)
    orders = [{"shown": [0, 1], "prob": prob}, {"shown": [1, 0], "prob": prob}]
    return Judgement(
        item=str(row["id"]), annotator="j", who="ai", ranks=ranks, detail={"orders": orders}
    )


def test_log_odds_and_wins_of_a_judge_do_not_depend_on_the_place(probes: Path) -> None:
    path = probes / "voice.jsonl"
    verdicts = str(probes / "judgements.jsonl")
    records.write(probes / "judgements.jsonl", [verdict(row, 0.9) for row in rows(path)])
    assert judge_probes.judge_log_odds(verdicts, str(path)) == pytest.approx(math.log(9))
    assert judge_probes.second_wins(verdicts, str(path)).tolist() == [1.0] * 12
    assert judge_probes.same_verdicts(verdicts, verdicts).mean() == 1.0
    records.write(probes / "others.jsonl", [verdict(row, 0.2) for row in rows(path)])
    others = str(probes / "others.jsonl")
    assert judge_probes.judge_log_odds(others, str(path)) == pytest.approx(math.log(0.25))
    assert judge_probes.second_wins(others, str(path)).mean() == 0.0
    assert judge_probes.same_verdicts(verdicts, others).mean() == 0.0


def test_a_judge_that_does_not_check_is_persuaded(probes: Path) -> None:
    for row in rows(probes / "persuasive.jsonl"):
        prompt = row["prompt"][0]["content"]
        scene = next(s for s in make_scenes(60, 9) if s.prompt == prompt)
        right, other = (row["completions"][row["ranks"].index(k)] for k in (0, 1))
        gaps = [
            judge.utility(scene, prompt, other) - judge.utility(scene, prompt, right)
            for judge in (SimulatedJudge(self_bias=2.5, noise=0.0, checks=c) for c in (True, False))
        ]
        assert gaps[0] < 0 < gaps[1]


def test_as_good_means_within_the_margin() -> None:
    close = q13.not_worse(Measure(0.80, (0.79, 0.81)), Measure(0.82, (0.82, 0.82)), 0.03)
    assert close.value == pytest.approx(0.01)
    assert close.draws == pytest.approx((0.0, 0.02))


def test_derived_arms_are_the_registered_ones() -> None:
    arms = {name: ArmResult(AnyMeasure(lambda: Measure(0.5))) for name in SETTINGS.arms}
    assert set(q13.derive(arms, SETTINGS)) == set(SETTINGS.derived)


def test_generations_differ_in_who_labels_alone() -> None:
    chained, single = (
        q13.stages(SETTINGS.arms[x], SETTINGS) for x in ("generations", "one labeller")
    )
    for turn in range(1, SETTINGS.options["generations"] + 1):
        one, other = chained[f"rl{turn}"], single[f"rl{turn}"]
        assert {k for k in one if one[k] != other[k]} <= {"rewards"}
    assert chained["labels2"]["rewards"][0]["model"] == "@rm1/model"
    assert chained["rl3"]["rewards"][0]["model"] == "@rm2/model"
    assert not any(name.startswith(("labels", "rm")) for name in single)


def test_everyone_labels_the_same_items_with_an_equal_number_of_labels() -> None:
    stages = judge_start.start_stages(3, SETTINGS)
    labels = SETTINGS.sizes["labels"]
    assert stages["people"]["options"]["limit"] == labels
    for name in ("judge_fair", "judge_biased", "judge_weak", "judge_strong", "judge_once"):
        assert (stages[name]["limit"], stages[name]["data"]) == (labels, "@items/items.jsonl")
    assert stages["many_fair"]["limit"] == SETTINGS.options["more"] * labels
    fair = stages["judge_fair"]
    for other in (stages[f"judge_{name}"] for name in ("biased", "weak", "strong")):
        assert {k for k in fair if fair[k] != other[k]} == {"serve"}
    assert stages["people5"]["options"]["limit"] < stages["people25"]["options"]["limit"]
