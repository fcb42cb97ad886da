"""Question 8: the exact optima, the measures, and arms that differ in what a claim names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.questions.arm_differences import differing
from trimtab.objectives.preference import DIRECT
from trimtab.questions import q08, three_answers
from trimtab.questions.claim import load_settings

SETTINGS = load_settings()[8]
START = Path("start")


def arm(name: str) -> dict[str, Any]:
    return q08.stages(SETTINGS.arms[name], SETTINGS, START)[0]


def test_optima_agree_where_every_pair_was_compared() -> None:
    rng = np.random.default_rng(0)
    reward, reference = np.array([1.0, -0.5, 0.25]), np.array([0.2, 0.5, 0.3])
    pairs = three_answers.COVERED["all"]
    reached = three_answers.dpo_optimum(rng.normal(size=(5, 3)), reference, reward, 0.5, pairs)
    expected = reference * np.exp(reward / 0.5)
    expected /= expected.sum()
    assert reached == pytest.approx(np.tile(expected, (5, 1)), abs=1e-9)
    assert three_answers.rlhf_optimum(reference, reward, 0.5) == pytest.approx(expected)


def test_an_answer_that_nobody_compared_stays_where_training_began() -> None:
    """The two compared answers get the odds of RLHF; of the third, DPO's loss says nothing."""
    reward, reference = np.array([1.0, -0.5, 3.0]), np.array([0.2, 0.5, 0.3])
    pairs = three_answers.COVERED["two"]
    starts = np.array([[0.0, 0.0, -5.0], [0.0, 0.0, 5.0]])
    low, high = three_answers.dpo_optimum(starts, reference, reward, 0.5, pairs)
    best = three_answers.rlhf_optimum(reference, three_answers.fitted_reward(reward, pairs), 0.5)
    for policy in (low, high):
        assert policy[0] / policy[1] == pytest.approx(best[0] / best[1])
    assert low[2] < 0.01 and high[2] > 0.9
    shares = {c: np.mean(three_answers.agreements(0, c)) for c in ("all", "two")}
    assert shares["all"] == pytest.approx(1.0) and shares["two"] < 0.9


def test_every_direct_method_is_an_arm() -> None:
    types = {v["objective"]["type"] for v in SETTINGS.arms.values() if v["train"] == "dpo"}
    assert types == set(DIRECT)


@pytest.mark.parametrize(
    ("one", "other", "paths"),
    [
        ("dpo[labels=300]", "dpo[rate=high]", {"train.optim.lr"}),
        ("ppo[labels=300]", "ppo[rate=low]", {"train.optim.lr"}),
        ("dpo[labels=300]", "dpo pushed", {"train.epochs"}),
        ("ppo[labels=300]", "ppo pushed", {"train.steps"}),
        ("dpo[labels=300]", "relative[method=rpo]", {"train.objective.type", "train.objective.rpo_alpha"}),
        ("ppo[labels=300]", "ppo[labels=3000]", {"train.critic.model.path", "train.rewards"}),
    ],
)  # fmt: skip
def test_arms_differ_in_what_a_claim_names(one: str, other: str, paths: set[str]) -> None:
    rate = {"train.optim.lr"} - paths  # tuned for each arm, or what the arm varies
    assert differing(arm(one), arm(other)) - rate == paths


def test_rates_are_a_quarter_and_four_times_the_tuned_one() -> None:
    tuned = SETTINGS.arms["ppo[labels=300]"]["lr"]
    rates = [arm(f"ppo[rate={r}]")["train"]["optim"]["lr"] for r in ("low", "high")]
    assert rates == [pytest.approx(tuned / 4), pytest.approx(4 * tuned)]


def test_online_dpo_and_ppo_have_as_many_completions_and_updates() -> None:
    ppo, online = arm("ppo[labels=300]")["train"], arm("online[labels=300]")["train"]
    updates = ppo["method"]["updates"]
    assert ppo["steps"] * updates["epochs"] * updates["minibatches"] == online["steps"]
    drawn = online["steps"] * online["batch_size"] * online["num_completions"]
    assert drawn == ppo["steps"] * ppo["batch_size"]
    assert ppo["data"] == online["data"] and ppo["rewards"] == online["rewards"]


def test_sft_and_dpo_read_the_same_ranked_prompts() -> None:
    first, dpo = arm("first[labels=300]"), arm("dpo[labels=300]")
    assert (first["best"]["data"], first["best"]["limit"]) == tuple(dpo["train"]["data"].values())
    for key in ("epochs", "batch_size", "model"):
        assert first["train"][key] == dpo["train"][key]
