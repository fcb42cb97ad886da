"""Verdicts: against scipy by hand, and on planted nulls and effects."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from trimtab.questions import verdict
from trimtab.questions.verdict import Verdict, control_false_discoveries, from_prompts, from_seeds
from trimtab.stats.uncertainty import Estimate

CLAIMS = 400
SMALLEST = 0.05


def verdicts(effect: float, spread: float, seed: int, claims: int = CLAIMS) -> list[Verdict]:
    """The whole path: five seeds, five more where undecided, then all claims together."""
    rng = np.random.default_rng(seed)
    effects = rng.normal(effect, spread, (claims, 10)).tolist()
    first = [from_seeds(e[:5], SMALLEST) for e in effects]
    second = [
        from_seeds(e, SMALLEST) if v.outcome == "undecided" else v
        for e, v in zip(effects, first, strict=True)
    ]
    return control_false_discoveries(second)


def share(results: Sequence[Verdict], outcome: str) -> float:
    return Counter(v.outcome for v in results)[outcome] / len(results)


@pytest.mark.parametrize("spread", [0.3, 0.6, 2.0])
def test_a_planted_null_rarely_holds(spread: float) -> None:
    assert share(verdicts(0.0, spread * SMALLEST, 1), "holds") <= 0.05


def test_the_null_is_safe_without_the_correction_too() -> None:
    """Two looks at 97.5 %: at most 2.5 % of null claims hold; 20,000 claims say so to 0.2 points."""
    rng = np.random.default_rng(3)
    effects = rng.normal(0.0, 0.6 * SMALLEST, (20_000, 10))
    held = np.zeros(len(effects), bool)
    for n in verdict.LOOKS:
        mean, error = effects[:, :n].mean(1), effects[:, :n].std(1, ddof=1) / math.sqrt(n)
        held |= mean / error > verdict.student.ppf(0.5 + verdict.CONFIDENCE / 2, n - 1)
    assert held.mean() <= 0.0275


def test_a_planted_effect_of_the_smallest_size_holds() -> None:
    results = verdicts(SMALLEST, 0.6 * SMALLEST, 2)
    assert share(results, "holds") >= 0.75
    assert share(results, "fails") <= 0.05


def test_an_effect_of_a_third_of_the_smallest_size_is_called_smaller() -> None:
    results = verdicts(SMALLEST / 3, 0.05 * SMALLEST, 4)
    assert share(results, "fails") > 0.99
    assert Counter(v.reason for v in results).most_common(1)[0][0] == "smaller"
    assert {v.reason for v in verdicts(-SMALLEST, 0.1 * SMALLEST, 4)} == {"reversed"}


def test_planted_effects_among_nulls_are_told_apart() -> None:
    rng = np.random.default_rng(5)
    real = rng.random(CLAIMS) < 0.25
    effects = rng.normal(real[:, None] * 2 * SMALLEST, 0.6 * SMALLEST, (CLAIMS, 5))
    results = control_false_discoveries([from_seeds(e, SMALLEST) for e in effects.tolist()])
    holds = np.array([v.outcome == "holds" for v in results])
    assert (holds & ~real).sum() <= 0.05 * max(1, holds.sum())
    assert holds[real].mean() > 0.9


def test_interval_and_p_values_are_scipys() -> None:
    effects = [0.031, 0.058, 0.012, 0.044, 0.027]
    result = from_seeds(effects, 0.05)
    test = ttest_1samp(effects, 0.0, alternative="greater")
    interval = ttest_1samp(effects, 0.0).confidence_interval(verdict.CONFIDENCE)
    assert result.effect.value == pytest.approx(0.0344)
    assert result.effect.low == pytest.approx(float(interval.low))
    assert result.effect.high == pytest.approx(float(interval.high))
    # 0.0344 +- 3.4954 * 0.01744 / sqrt 5 = [0.0071, 0.0617]: above 0, and 0.05 is possible
    assert (result.effect.low, result.effect.high) == pytest.approx((0.0071, 0.0617), abs=1e-4)
    assert (result.outcome, result.seeds, result.provisional) == ("holds", 5, False)
    assert result.p_holds == pytest.approx(2 * float(test.pvalue))
    less = ttest_1samp(effects, 0.05, alternative="less")
    assert result.p_fails == pytest.approx(2 * float(less.pvalue))


def test_the_second_look_counts_only_where_the_first_did_not_decide() -> None:
    clear, reversed_later = [0.10, 0.11, 0.10, 0.09, 0.10], [-0.3, -0.2, -0.3, -0.2, -0.3]
    assert from_seeds(clear + reversed_later, SMALLEST).outcome == "holds"
    assert from_seeds(clear + reversed_later, SMALLEST).seeds == 5
    unclear = [0.10, -0.10, 0.10, -0.05, 0.05]
    assert from_seeds(unclear, SMALLEST).outcome == "undecided"
    both = from_seeds([*unclear, *clear], SMALLEST)
    assert both.seeds == 10 and both.effect.value == pytest.approx(0.06)
    with pytest.raises(ValueError, match="11 seeds"):
        from_seeds([*unclear, *clear, 0.1], SMALLEST)
    with pytest.raises(ValueError, match="not finite"):
        from_seeds([0.1, math.nan], SMALLEST)


def test_few_seeds_are_provisional_and_escape_the_correction() -> None:
    few = from_seeds([0.1, 0.11, 0.1], SMALLEST)
    assert few.provisional and few.outcome == "holds" and math.isnan(few.p_holds)
    assert control_false_discoveries([few]) == [few]
    one = from_prompts(Estimate(0.04, 0.01, 0.07), SMALLEST)
    assert (one.outcome, one.provisional, one.seeds) == ("holds", True, 1)
    assert from_prompts(Estimate(0.2, math.nan, math.nan), SMALLEST).outcome == "undecided"


def test_the_number_of_seeds_that_would_decide_decides() -> None:
    rng = np.random.default_rng(6)
    for _ in range(20):
        effects = rng.normal(0.02, 0.05, 5)
        n = verdict.seeds_needed(effects.tolist(), SMALLEST)
        assert n is not None and n > 5
        standard = (effects - effects.mean()) / effects.std(ddof=1)
        for size, decided in ((n, True), (n - 1, False)):
            many = rng.normal(size=size)
            many = (many - many.mean()) / many.std(ddof=1) * effects.std(ddof=1) + effects.mean()
            interval = verdict.t_interval(many.tolist())
            outcome = verdict.decide(interval.low, interval.high, SMALLEST).outcome
            assert (outcome != "undecided") == decided or size <= 5, (n, size, standard)


def test_one_claim_of_many_with_a_weak_p_value_becomes_undecided() -> None:
    weak = from_seeds([0.031, 0.058, 0.012, 0.044, 0.027], SMALLEST)
    nulls = [from_seeds(e, SMALLEST) for e in np.random.default_rng(7).normal(0, 0.1, (99, 5))]
    assert weak.outcome == "holds" and 0.01 < weak.p_holds < 0.05
    assert control_false_discoveries([weak])[0].outcome == "holds"
    lost = control_false_discoveries([weak, *nulls])[0]
    assert (lost.outcome, lost.reason) == ("undecided", "multiplicity")


def test_no_spread_is_no_division_by_zero() -> None:
    assert from_seeds([0.1] * 5, SMALLEST).outcome == "holds"
    none = from_seeds([0.0] * 5, SMALLEST)
    assert (none.outcome, none.reason, none.p_holds, none.p_fails) == ("fails", "none", 1.0, 0.0)


def test_differing_conditions_make_a_claim_depend() -> None:
    assert verdict.over_conditions(["holds"]) == "holds"
    assert verdict.over_conditions(["fails", "fails"]) == "fails"
    assert verdict.over_conditions(["fails", "holds", "undecided"]) == "depends"
    assert verdict.over_conditions(["fails", "undecided"]) == "undecided"
