"""Noise and signal of an estimator: by hand, unbiased by simulation, and where there is no signal."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trimtab.errors import DataError
from trimtab.stats.noise_to_signal import noise_to_signal


def gram(estimates: np.ndarray) -> np.ndarray:
    return estimates @ estimates.T


def test_by_hand() -> None:
    # g = (1, ±1): the mean is (1, 0) up to the sample, noise 1, signal 1.
    result = noise_to_signal(gram(np.array([[1.0, 1.0], [1.0, -1.0], [1.0, 1.0], [1.0, -1.0]])))
    # Own products 2, cross products 2, 0, 0, 0, 0, 2 over six pairs: 2/3.
    assert result.signal == pytest.approx(2 / 3)
    assert result.noise == pytest.approx(2 - 2 / 3)
    assert result.ratio.value == pytest.approx(2.0)
    assert result.cosine == pytest.approx(1 / 3)
    same = noise_to_signal(gram(np.ones((3, 5))))
    assert same.noise == pytest.approx(0.0) and same.ratio.value == pytest.approx(0.0)


def test_both_parts_are_unbiased_and_the_interval_covers() -> None:
    """60 dimensions, |mean|² = 4, covariance trace 12: the ratio is 3."""
    rng = np.random.default_rng(0)
    mean = np.zeros(60)
    mean[0] = 2.0
    draws = [mean + rng.normal(size=(12, 60)) * math.sqrt(12 / 60) for _ in range(400)]
    results = [noise_to_signal(gram(d)) for d in draws]
    assert np.mean([r.noise for r in results]) == pytest.approx(12, rel=0.02)
    assert np.mean([r.signal for r in results]) == pytest.approx(4, rel=0.03)
    covered = np.mean([r.ratio.low <= 3.0 <= r.ratio.high for r in results])
    assert 0.9 <= covered <= 0.99


def test_without_a_signal_the_ratio_is_infinite() -> None:
    result = noise_to_signal(gram(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])))
    assert result.signal < 0 and math.isinf(result.ratio.value) and math.isinf(result.ratio.high)
    with pytest.raises(DataError, match="at least 3"):
        noise_to_signal([[1.0, 0.0], [0.0, 1.0]])
