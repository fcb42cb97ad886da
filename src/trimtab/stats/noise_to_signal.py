"""Noise of a gradient estimator against its signal, from repeated estimates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from trimtab.errors import DataError
from trimtab.stats.uncertainty import Estimate

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class NoiseToSignal:
    """Of R independent estimates g_r of one gradient."""

    noise: float
    """Unbiased E|g - E g|², the trace of the covariance of one estimate."""
    signal: float
    """Unbiased |E g|²; may be negative where the noise hides it."""
    ratio: Estimate
    """noise / signal with its jackknife interval: the number of estimates to average until noise
    equals signal. Infinite where the signal is not above 0."""
    cosine: float
    """Mean cosine of two estimates."""


def noise_to_signal(gram_RR: npt.ArrayLike, confidence: float = 0.95) -> NoiseToSignal:
    """Noise and signal from the inner products of the estimates.

    Two different estimates are independent, so the mean of their inner products is an unbiased
    estimate of |E g|²; the plug-in |mean g|² is too large by noise / R.

    Args:
        gram_RR: Inner products g_r · g_s, R >= 3.

    Raises:
        DataError: fewer than three estimates.

    >>> noise_to_signal([[2.0, 1.0, 1.0], [1.0, 2.0, 1.0], [1.0, 1.0, 2.0]]).ratio.value
    1.0
    """
    gram = np.asarray(gram_RR, np.float64)
    size = len(gram)
    if size < 3:
        raise DataError(f"noise of a gradient needs at least 3 estimates, got {size}")
    noise, signal = _parts(gram)
    ratio = _ratio(noise, signal)
    left_out = np.array(
        [_ratio(*_parts(np.delete(np.delete(gram, r, 0), r, 1))) for r in range(size)]
    )
    if math.isinf(ratio) or not np.isfinite(left_out).all():
        interval = Estimate(ratio, math.nan, math.inf)
    else:
        error = math.sqrt((size - 1) / size * float(((left_out - left_out.mean()) ** 2).sum()))
        half = float(stdtrit(size - 1, 0.5 + confidence / 2)) * error
        interval = Estimate(ratio, max(0.0, ratio - half), ratio + half)
    norm_R = np.sqrt(np.diag(gram))
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine_RR = gram / np.outer(norm_R, norm_R)
    off = ~np.eye(size, dtype=bool)
    return NoiseToSignal(noise, signal, interval, float(cosine_RR[off].mean()))


def _parts(gram: Floats) -> tuple[float, float]:
    size = len(gram)
    own = float(np.trace(gram)) / size
    cross = float(gram.sum() - np.trace(gram)) / (size * (size - 1))
    return own - cross, cross


def _ratio(noise: float, signal: float) -> float:
    return noise / signal if signal > 0 else math.inf
