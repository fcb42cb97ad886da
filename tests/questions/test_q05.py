"""Question 5: arms that differ in what a claim names, and the measures of word-problem arms."""

from __future__ import annotations

import doctest
from collections.abc import Mapping
from typing import Any

import pytest

from tests.questions.arm_differences import but_rate, differing, flat, resolved
from trimtab.questions import q05, word_problem_arms
from trimtab.questions.claim import Claim, load_claims, load_settings

SETTINGS = load_settings()[5]
CLAIMS = {c.key: c for c in load_claims()[5]}


def stages(arm: str) -> Mapping[str, Mapping[str, Any]]:
    return q05.stages(SETTINGS.arms[arm], SETTINGS)


def differ(claim: Claim) -> set[str]:
    """The keys that the claim's arms have different values of."""
    one, other = (name if name in SETTINGS.arms else "ppo" for name in claim.arms)
    return but_rate(differing(resolved(stages(one)), resolved(stages(other))))


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("5.3a", {"advantage.baseline"}),
        ("5.3b", {"advantage.baseline"}),
        ("5.3c", {"type", "advantage.estimator", "advantage.lam"}),
        ("5.3d", {"advantage.lam"}),
        ("5.3e", {"advantage.baseline"}),
        ("5.4a[epochs=4]", {"updates.epochs"}),
        ("5.4b[epochs=2]", {"clip.low", "clip.high"}),
        ("5.9a[epochs=4]", {"kl.place"}),
        ("5.9b[epochs=4]", {"clip.low", "clip.high"}),
        ("5.9d[epochs=4]", {"clip.low", "clip.high"}),
        ("5.7[reward=weak]", {"kl.beta"}),
        ("5.8b[reward=exact]", {"kl.beta"}),
    ],
)
def test_arms_differ_in_what_the_claim_names_and_nothing_else(key: str, named: set[str]) -> None:
    keys = {
        k for k in differ(CLAIMS[key]) if k.startswith("rl.") and not k.startswith("rl.critic.")
    }
    assert keys == {f"rl.method.{name}" for name in named}


def test_all_word_problem_arms_draw_equal_samples() -> None:
    draws = {
        (plan["rl.steps"], plan["rl.batch_size"], plan["rl.method.group_size"])
        for name, values in SETTINGS.arms.items()
        if "reward" not in values and "vocabulary" not in values
        for plan in [flat(resolved(stages(name)))]
    }
    assert draws == {(SETTINGS.sizes["steps"], 16, 4)}


def test_estimators_are_measured_at_equal_samples_and_without_a_penalty() -> None:
    for name in q05.ESTIMATORS:
        plan = flat(resolved(stages(name)))
        assert plan["noise.batch_size"] * plan["noise.method.group_size"] == 64
        assert plan["noise.method.kl.place"] == "none"


def test_vocabularies_differ_in_the_start_alone() -> None:
    for name in ("shifted", "naive", "gradient"):
        keys = differing(
            resolved(stages(f"{name}[vocabulary=150]")),
            resolved(stages(f"{name}[vocabulary=2000]")),
        )
        assert {k.rpartition(".")[2] for k in but_rate(keys)} == {"path", "data"}


def test_the_measures() -> None:
    assert doctest.testmod(word_problem_arms).failed == 0
    assert word_problem_arms.iterations_to([0.0] * 8, 0.5) == 8
    assert word_problem_arms.iterations_to([0.6] * 8, 0.5) == 5
    assert word_problem_arms.drawdown([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]) == 0.0
    assert word_problem_arms.noise_of({"noise": 8.0, "signal": 0.01}, 100.0).value == 100.0
