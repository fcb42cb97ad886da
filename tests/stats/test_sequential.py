"""Tests that may be read at any time, fits with a peak, win rates at equal length, style."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import DataError
from trimtab.stats.length import Verdicts, length_controlled
from trimtab.stats.overoptimisation import Overoptimisation, fit_points
from trimtab.stats.sequential import Fall, fall, log_wealth, splits
from trimtab.stats.style import style
from trimtab.stats.uncertainty import Estimate

units = st.lists(st.floats(0, 1), max_size=40)


def test_wealth_by_hand() -> None:
    gains = [0.5, -0.2, 1.0]
    bets = np.geomspace(0.05, 0.95, 10)
    by_hand = [float(np.mean([math.prod(1 + b * g for g in gains[: n + 1]) for b in bets])) for n in range(3)]  # fmt: skip
    assert np.exp(log_wealth(np.array(gains))) == pytest.approx(by_hand)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12))
def test_wealth_on_a_fair_coin_is_one_on_average(sizes: list[float]) -> None:
    """Over all signs of gains of mean 0: an e-process, which is what the p-value rests on."""
    n = min(len(sizes), 6)
    signs = np.array(np.meshgrid(*[[-1, 1]] * n)).reshape(n, -1).T
    last = [math.exp(log_wealth(s * np.array(sizes[:n]))[-1]) for s in signs]
    assert float(np.mean(last)) == pytest.approx(1.0)


@settings(max_examples=40)
@given(units, units)
def test_p_never_rises_and_stays_a_probability(a: list[float], b: list[float]) -> None:
    first, more = fall(a), fall([*a, *b])
    assert 0 < more.p <= first.p <= 1


def alarms(series: list[np.ndarray], alpha: float) -> float:
    return float(np.mean([fall(x.tolist()).p < alpha for x in series]))


def test_false_alarms_over_a_whole_run_stay_below_alpha() -> None:
    rng = np.random.default_rng(0)
    flat = [(rng.random(250) < 0.6).astype(float) for _ in range(150)]
    rising = [(rng.random(250) < np.linspace(0.4, 0.9, 250)).astype(float) for _ in range(50)]
    assert alarms(flat, 0.1) <= 0.1 + 3 * math.sqrt(0.09 / 150)
    assert alarms(rising, 0.1) == 0.0


def test_a_fall_is_found_where_it_is() -> None:
    rng = np.random.default_rng(1)
    means = np.concatenate([np.linspace(0.6, 0.8, 150), np.full(150, 0.45)])
    series = [np.clip(rng.normal(means, 0.2), 0, 1) for _ in range(30)]
    assert alarms(series, 0.01) >= 0.9
    test = fall(series[0].tolist())
    assert 100 <= test.split <= 200
    assert test.before - test.after > 0.2
    # With the order shuffled the signal is gone.
    assert alarms([rng.permutation(x) for x in series], 0.01) <= 0.1


def test_too_little_and_out_of_bounds() -> None:
    assert splits(8) == []
    assert isinstance(fall([0.5] * 5), Fall) and fall([0.5] * 5).p == 1.0
    with pytest.raises(DataError, match=r"\[0, 1\]"):
        fall([0.5, 3.0])
    assert fall([3.0] * 20, 1, 5).p > 0.5


# Gao's forms -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "alpha", "beta"), [("rl", 0.4, 0.3), ("bon", 0.3, 0.07)])
def test_the_planted_curve_is_found(form, alpha: float, beta: float) -> None:
    true = Overoptimisation(form, alpha, beta)
    d = np.linspace(0.05, 4, 25)
    exact = fit_points((d**2).tolist(), [[0.7 + true(x)] for x in d], form, draws=20)
    assert (exact.curve.alpha, exact.curve.beta) == pytest.approx((alpha, beta))
    assert exact.start == pytest.approx(0.7)
    assert exact.r2 == pytest.approx(1.0)
    assert exact.peak[0] == pytest.approx(true.peak)
    assert exact(true.peak) == pytest.approx(0.7 + true.best)
    covered = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        noisy = [(0.7 + true(x) + rng.normal(0, 0.2, 20)).tolist() for x in d]
        low, high = fit_points((d**2).tolist(), noisy, form, draws=100).peak[1:]
        covered += low <= true.peak <= high
    assert covered >= 16


def test_a_line_that_never_bends_has_no_peak() -> None:
    d = np.linspace(0.1, 3, 12)
    fit = fit_points((d**2).tolist(), [[x**1.5] for x in d], draws=20)
    assert math.isinf(fit.peak[0]) and fit.peak[2] > fit.reach
    with pytest.raises(DataError, match="three different KL"):
        fit_points([1.0, 2.0], [[1.0], [2.0]])
    with pytest.raises(DataError, match="finite"):
        fit_points([1.0, 2.0, 3.0], [[1.0], [math.nan], [1.0]])


# Equal length ----------------------------------------------------------------------------------


def controlled(wins: Sequence[float], gaps: Sequence[float], n: int) -> Estimate:
    names = tuple(map(str, range(len(wins))))
    return length_controlled(Verdicts(names, np.array(wins, float), np.array(gaps, float)), {}, n=n)


def test_O15_length_controlled() -> None:
    rng = np.random.default_rng(0)
    gap = rng.normal(8, 6, 3000)
    p = 1 / (1 + np.exp(-np.tanh(gap / gap.std())))
    wins = (rng.random(3000) < p).astype(float)
    raw, even = wins.mean(), controlled(list(wins), list(gap), n=100)
    assert raw > 0.6
    assert even[0] == pytest.approx(0.5, abs=0.04)
    assert even[1] < 0.5 < even[2]


@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(-20, 20)), min_size=2))
def test_swapping_the_models_turns_it_over(rows: list[tuple[float, int]]) -> None:
    wins, gaps = [w for w, _ in rows], [float(g) for _, g in rows]
    there = controlled(wins, gaps, n=2)[0]
    back = controlled([1 - w for w in wins], [-g for g in gaps], n=2)[0]
    assert there == pytest.approx(1 - back, abs=1e-6)


def test_equal_lengths_leave_the_win_rate() -> None:
    assert controlled([1, 1, 1, 0] * 50, [0.0] * 200, n=2)[0] == pytest.approx(0.75, abs=1e-3)
    assert math.isnan(controlled([], [], n=2)[0])


def test_style_by_hand() -> None:
    metrics = style(
        ["a b c d", "x"], ["You are right, a b c d", "sorry , i cannot help with that ."]
    )
    assert metrics["flattery"] == metrics["refusal"] == metrics["same_opening"] == 0.5
    assert metrics["words"] == 7.5
    assert metrics["copied"] == pytest.approx((2 / 5) / 2)
