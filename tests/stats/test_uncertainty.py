"""Oracles O15 and O3c, and coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trimtab.stats.uncertainty import bootstrap_mean, calibration_bins, ece, wilson, win_rate


def test_wilson_known_values():
    assert wilson(0, 10) == pytest.approx((0.0, 0.277533), abs=1e-6)
    assert wilson(10, 10) == pytest.approx((0.722467, 1.0), abs=1e-6)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(5, 10, 0.99)[0] < wilson(5, 10)[0]


def test_o15_interval_of_400_prompts_at_half():
    values = [0.0, 1.0] * 200
    mean, low, high = bootstrap_mean(values)
    assert mean == 0.5
    assert low == pytest.approx(0.5 - 0.049, abs=0.004)
    assert high == pytest.approx(0.5 + 0.049, abs=0.004)


def test_o15_duplicated_rows_do_not_shrink_it():
    values = [0.0, 1.0] * 200
    prompts = list(range(400))
    once = bootstrap_mean(values, prompts)
    twice = bootstrap_mean(values * 4, prompts * 4)
    assert twice == pytest.approx(once, abs=1e-12)
    naive = bootstrap_mean(values * 4)  # the mistake: it does shrink
    assert naive[2] - naive[1] < 0.6 * (once[2] - once[1])


def test_coverage_is_about_right():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        prompt = rng.normal(size=60)
        values = (prompt[:, None] + rng.normal(size=(60, 5))).ravel()
        _, low, high = bootstrap_mean(values, np.repeat(np.arange(60), 5).tolist(), 400, trial)
        hits += low <= 0 <= high
    assert 0.88 <= hits / 200 <= 0.985


def test_equal_models_win_half_and_no_values_is_nan():
    assert win_rate([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == (0.5, 0.5, 0.5)
    assert win_rate([2.0] * 4, [1.0] * 4) == (1.0, 1.0, 1.0)
    assert all(math.isnan(x) for x in bootstrap_mean([]))


def test_o3c():
    confidence, correct = [0.9, 0.9, 0.6, 0.6], [1, 0, 1, 1]
    assert ece(confidence, correct, [0.5, 0.75, 1]) == pytest.approx(0.4)
    bins = calibration_bins(confidence, correct, [0.5, 0.75, 1])
    assert [b["count"] for b in bins] == [2, 2]
    assert [b["accuracy"] for b in bins] == [1.0, 0.5]
    assert ece([1.0, 1.0], [1, 1]) == 0.0


def test_calibrated_is_near_zero():
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1, 20000)
    assert ece(sure, rng.uniform(size=20000) < sure) < 0.02
    assert ece(sure, np.ones(20000)) == pytest.approx(0.25, abs=0.01)
