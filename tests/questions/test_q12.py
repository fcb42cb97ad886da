"""Question 12: its measures on small arrays, and arms that differ only in what a claim names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from tests.questions.arm_differences import but_rate, differing
from tests.questions.arm_differences import resolved as resolved_stages
from trimtab.config import build
from trimtab.questions import chain
from trimtab.questions import claim as registry
from trimtab.questions import credit_measures as measures
from trimtab.questions import credit_stages as stages
from trimtab.questions.claim import Settings
from trimtab.runs import to_json
from trimtab.sandbox.arithmetic import Change, Problem
from trimtab.sandbox.word_problems import prompt_row, step_effects
from trimtab.train.step_advantages import StepAdvantagesConfig

PROBLEM = Problem("anna", "coins", 12, (Change("+", 7), Change("-", 3), Change("*", 2)))
WRITTEN = "<< 12 + 7 = 19 >> ; << 19 - 3 = 15 >> ; << 15 * 2 = 30 >> ; #### 30"


def row(text: str = WRITTEN, prompt: int = 0, **columns: Any) -> dict[str, Any]:
    pieces = [piece.strip() for piece in text.split(";")]
    values = {"problem": PROBLEM.to_json(), "answer": "32", "prompt": prompt}
    return {**values, "completion": text, "steps": pieces, **columns}


def settings() -> Settings:
    return registry.load_settings()[12]


def test_rank_correlation_is_scipys() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=60), rng.integers(0, 4, 60)
    measure = measures.rank_correlation(x, y, np.arange(60) // 3)
    assert measure.value == pytest.approx(float(spearmanr(x, y).statistic))
    assert measure.draws is not None and 0.05 < np.std(measure.draws) < 0.3
    assert measures.rank_correlation(x, np.ones(60), np.arange(60)).value == 0.0


def test_explained_variance_of_values() -> None:
    true, prompt = np.array([0.0, 1.0, 0.0, 1.0]), [0, 0, 1, 1]
    assert measures.explained(true, true, prompt).value == pytest.approx(1.0)
    assert measures.explained([0.5] * 4, true, prompt).value == pytest.approx(0.0)
    assert measures.explained(1 - true, true, prompt).value == pytest.approx(-3.0)


def test_effects_and_values_of_the_worked_example() -> None:
    """docs/sandbox.md: 0.4355, then +0.1305, -0.5243, -0.0417."""
    effects = measures.true_effects(row(), 0.25)
    assert effects == pytest.approx([0.1305, -0.5243, -0.0417], abs=1e-4)
    assert effects == step_effects(PROBLEM, WRITTEN, 0.25)
    assert measures.true_values(row(), 0.25) == pytest.approx([0.4355, 0.5660, 0.0417], abs=1e-4)
    assert measures.true_effects({**row(), "steps": ["one"]}, 0.25) == []


def test_mistakes_their_repair_and_their_cost() -> None:
    repaired = "<< 12 + 7 = 18 >> ; << 18 - 3 = 16 >> ; << 16 * 2 = 32 >> ; #### 32"
    right = "<< 12 + 7 = 19 >> ; << 19 - 3 = 16 >> ; << 16 * 2 = 32 >> ; #### 32"
    assert measures.mistakes(row()) == [False, True, False]
    rows = [row(), row(repaired, 1), row(right, 2)]
    assert measures.repaired(rows).value == pytest.approx(1 / 2)
    assert measures.cost_of_a_mistake([row(), row(right, 1)], 0.25).value == pytest.approx(
        0.5243, abs=1e-4
    )
    careful = measures.cost_of_a_mistake([row()], 0.05).value
    assert careful > measures.cost_of_a_mistake([row()], 0.35).value > 0


def test_gains_of_learned_scores() -> None:
    assert measures.gains({"score": [0.7, 0.1, 0.9]}, 2) == pytest.approx([0.2, -0.6])


def resolved(reward: str) -> dict[str, Any]:
    plan = stages.learning_stages({"reward": reward, "lr": 2e-4}, settings())
    return resolved_stages({"rl": plan["rl"]})["rl"]


@pytest.mark.parametrize(
    ("reward", "other", "keys"),
    [
        ("token", "outcome", {"process", "rewards"}),
        ("step", "outcome", {"process", "rewards"}),
        ("learned", "outcome", {"process", "rewards"}),
        ("summed", "outcome", {"process"}),
        ("implicit", "outcome", {"process", "rewards", "implicit"}),
        ("counted", "learned", {"process"}),
        ("token", "step", {"process"}),
        ("own", "token", {"method"}),
        ("critic", "outcome", {"process", "critic", "method"}),
    ],
)
def test_arms_that_learn_differ_in_their_reward_alone(
    reward: str, other: str, keys: set[str]
) -> None:
    different = but_rate(differing(resolved(reward), resolved(other)))
    assert {name.split(".")[0] for name in different} == keys
    assert {n for n in different if n.startswith("method")} <= {
        "method.advantage.estimator", "method.advantage.baseline",
    }  # fmt: skip
    if "rewards" in keys:
        assert resolved(reward)["rewards"][0] | {"weight": 1.0} == resolved(other)["rewards"][0]
    if (reward, other) == ("counted", "learned"):
        assert different == {"process.dense"}


def test_advantages_are_of_the_same_completions() -> None:
    plans = [
        stages.advantage_stages({"estimator": name, "steps": 4}, settings())["advantages"]
        for name in ("critic", "group", "monte-carlo", "learned")
    ]
    keys = ("model", "data", "rewards", "prompts", "completions", "sampling", "separator")
    for plan in plans:
        assert {k: plan[k] for k in keys} == {k: plans[0][k] for k in keys}
        values = {k: v for k, v in plan.items() if k != "type"}
        build(StepAdvantagesConfig, values)


def test_problems_by_their_number_of_steps(tmp_path: Path) -> None:
    short = Problem("ben", "kites", 4, (Change("+", 1),))
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(to_json(prompt_row(p)) + "\n" for p in (PROBLEM, short, PROBLEM)))
    chain.split_by_steps(file, (1, 3, 6))
    counts = [len((tmp_path / f"prompts-{n}.jsonl").read_text().splitlines()) for n in (1, 3, 6)]
    assert counts == [1, 2, 0]
    assert "kites" in (tmp_path / "prompts-1.jsonl").read_text()
