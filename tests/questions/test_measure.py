"""What an arm measured, and how measures are put together."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.questions.arm_stages import Answers
from trimtab.questions.claim import Settings
from trimtab.questions.measure import (
    ArmResult,
    Measure,
    combined,
    early_and_late,
    rank_correlation,
)

ONE, OTHER = Measure(0.2, (0.1, 0.3)), Measure(0.4, (0.5, 0.3))


def test_a_statistic_is_paired_by_bootstrap_sample() -> None:
    mean = combined([ONE, OTHER], lambda m: m.mean(0))
    assert mean == Measure(pytest.approx(0.3), (pytest.approx(0.3),) * 2)
    spread = combined([ONE, OTHER], lambda m: np.ptp(m, axis=0))
    assert spread == Measure(pytest.approx(0.2), (pytest.approx(0.4), pytest.approx(0.0)))
    gap = combined([OTHER, ONE], lambda m: m[0] - m[1])
    assert gap.draws == (pytest.approx(0.4), pytest.approx(0.0))


def test_without_draws_of_all_there_are_none() -> None:
    assert combined([ONE, OTHER, Measure(0.9)], lambda m: m.mean(0)) == Measure(
        pytest.approx(0.5), None
    )


def test_a_part_has_the_measures_of_another_policy() -> None:
    whole = ArmResult({"gold": ONE, "sft.gold": OTHER, "sftgold": ONE}, {"kl": [1.0]})
    assert whole.part("sft.") == ArmResult({"gold": OTHER})


def test_rank_correlation() -> None:
    assert rank_correlation([1, 2, 9], [0.1, 0.5, 0.6]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert rank_correlation([1, 1, 1], [3, 2, 1]) == 0.0


def test_early_is_after_a_third_and_late_at_the_end() -> None:
    parts = early_and_late([float(i) for i in range(24)])
    assert parts["early"].measures["gold"].value == 6.5  # iterations 5 to 8
    assert parts["late"].measures["gold"].value == 22.0  # the last three
    short = early_and_late([1.0, 2.0])
    assert (short["early"].measures["gold"].value, short["late"].measures["gold"].value) == (1, 2)


def test_an_arm_may_take_a_multiple_of_another_arms_learning_rate() -> None:
    arms = {
        "dpo": {"lr": 1e-4},
        "fast": {"rate_of": "dpo", "factor": 4},
        "twin": {"rate_of": "dpo"},
    }
    settings = Settings.model_validate({"minutes": 1, "sizes": {}, "arms": arms})
    assert [settings.rate(v) for v in settings.arms.values()] == pytest.approx([1e-4, 4e-4, 1e-4])


def test_different_completions_are_counted_by_prompt() -> None:
    answers = Answers([["a", "b", "a", "c"], ["a"] * 4], ["x", "y"], {})
    assert answers.different().tolist() == [0.75, 0.25]
    good = np.array([[True, True, True, False], [False] * 4])
    assert answers.different(good).tolist() == [0.5, 0.0]
