"""Question 1: the choice of demonstrations, the measures, and arms that differ in what a claim names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.questions.arm_differences import differing
from trimtab.datagen.output import jsonl
from trimtab.questions import chosen_demonstrations, exposure, policy_measures, q01
from trimtab.questions.claim import load_settings
from trimtab.sandbox.annotators import Annotator
from trimtab.sandbox.world import demonstrations, gold, make_scenes

SETTINGS = load_settings()[1]


def arm(name: str) -> dict[str, Any]:
    return q01.stages(SETTINGS.arms[name], SETTINGS, Path("start"), 0)[0]


def test_the_best_quarter_has_the_highest_gold_scores(tmp_path: Path) -> None:
    scenes = make_scenes(80, 0)
    rows = demonstrations(scenes, 0)
    (tmp_path / "demonstrations.jsonl").write_bytes(jsonl(rows))
    scores = sorted(
        gold(s, r["messages"][-1]["content"]).total for s, r in zip(scenes, rows, strict=True)
    )
    best = chosen_demonstrations.choose(tmp_path / "best", str(tmp_path), 0.25, "gold", 0)
    assert best["rows"] == 20 and best["gold"] == pytest.approx(np.mean(scores[-20:]))
    chance = chosen_demonstrations.choose(tmp_path / "any", str(tmp_path), 0.25, "chance", 0)
    assert chance["rows"] == 20 and chance["gold"] < best["gold"]
    lines = (tmp_path / "any" / "demonstrations.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [r for r in rows if r in map(json.loads, lines)]


@pytest.mark.parametrize(
    ("texts", "golds", "error"),
    [
        (["yes"] * 4, [1.0] * 4, 0.0),
        (["yes"] * 4, [0.2] * 4, 1.0),
        (["yes", "yes", "no", "so"], [1.0, 1.0, 0.0, 0.0], 0.5),
    ],
)
def test_confidence_is_the_share_of_the_most_frequent_completion(
    texts: list[str], golds: list[float], error: float
) -> None:
    parts = policy_measures.confidence_parts(np.array([texts]), np.array([golds]))
    assert float(policy_measures.miscalibration(parts.sum(0))) == pytest.approx(error)


def test_errors_of_confidence_do_not_cancel_between_levels() -> None:
    texts = np.array([["a", "a"], ["a", "b"]])
    golds = np.array([[0.0, 0.0], [1.0, 0.0]])
    parts = policy_measures.confidence_parts(texts, golds)
    assert float(policy_measures.miscalibration(parts.sum(0))) == pytest.approx((1.0 + 0.5) / 2)


def test_groups_differ_in_one_taste() -> None:
    warm, plain = (Annotator(**q01.person(g, SETTINGS)) for g in q01.GROUPS)
    scene = make_scenes(1, 0)[0]
    best = scene.needed[0]
    polite = f"{best} i hope this helps ."
    assert warm.gap(scene, polite, best) - plain.gap(scene, polite, best) == pytest.approx(
        2 * SETTINGS.options["taste"]
    )
    assert differing(q01.person("warm", SETTINGS), q01.person("plain", SETTINGS)) == {
        "name", "group", "format_bias",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("one", "other", "paths"),
    [
        ("dpo warm", "dpo plain", {"train.data.path"}),
        ("dpo warm", "dpo both", {"train.data.path"}),
        ("first warm", "first plain", {"first.data"}),
        ("first warm", "first both", {"first.data"}),
        ("demonstrations[chosen=random]", "demonstrations[chosen=best]", {"chosen.options.by"}),
        (
            "ppo[labels=300]",
            "ppo[labels=3000]",
            {"train.critic.model.path", "train.optim.lr", "train.rewards"},
        ),
    ],
)
def test_arms_differ_in_what_a_claim_names(one: str, other: str, paths: set[str]) -> None:
    assert differing(arm(one), arm(other)) == paths


def test_one_policy_for_two_groups_has_as_many_labels_as_one_for_each() -> None:
    labels = [q01.taste_part(groups, SETTINGS).stages for groups in (("warm",), ("warm", "plain"))]
    assert differing(*labels) == {"label.panel"}


def test_a_share_of_the_demonstrations_makes_as_many_updates() -> None:
    from trimtab.questions import chain

    share = SETTINGS.options["share"]
    assert (
        arm("demonstrations[chosen=best]")["train"]["epochs"] * share
        == chain.sft_stage("")["epochs"]
    )


def test_the_solvers_differ_in_rl_alone() -> None:
    sft, rl = (
        exposure.stages(SETTINGS.arms[f"solver[trained={t}]"], Path("solver"), SETTINGS.sizes)
        for t in ("sft", "rl")
    )
    assert differing(sft["prefixes"], rl["prefixes"]) == {"models.policy.path"}
    assert rl["rl"]["model"]["path"] == sft["prefixes"]["models"]["policy"]["path"]


def test_a_model_without_a_right_step_errs_always(tmp_path: Path) -> None:
    (tmp_path / "prefixes").mkdir()
    text = json.dumps({"policy": {"errors": {}, "differences": {}}})
    (tmp_path / "prefixes" / "summary.json").write_text(text)
    measures = {name: m.value for name, m in exposure.read(tmp_path).items()}
    assert measures == {"cost_of_error": 0.0, "own_minus_given": 0.0, "error_after_own": 1.0}
