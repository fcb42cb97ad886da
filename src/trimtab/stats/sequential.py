"""Tests that stay valid however often they are read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trimtab.errors import DataError

_BETS = np.geomspace(0.05, 0.95, 10)
"""Shares of the wealth that are bet; each starts with a tenth of the wealth."""
FIRST, RATIO = 8, 1.25


@dataclass(slots=True, frozen=True)
class Fall:
    """Result of a sequential test that a mean has fallen."""

    p: float
    """Anytime-valid p-value: without a fall, the probability that it is ever this low is no higher."""
    split: int
    """Values before the split with the strongest evidence; 0 with too few values to test."""
    before: float
    after: float
    """Means of the compared values before and after the split. The split was selected for the
    evidence, so they overestimate the size of the fall."""


def splits(n: int) -> list[int]:
    """Positions at which a series of ``n`` values is split: 8, 10, 13, ... below ``n``.

    >>> splits(20)
    [8, 10, 13, 16]
    """
    positions: list[int] = []
    while (at := math.ceil(FIRST * RATIO ** len(positions))) < n:
        positions.append(at)
    return positions


def log_wealth(gains: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Log wealth after each bet on ``gains`` [n] in [-1, 1], starting from 1 (2010.09686).

    Wealth is an e-process where every gain has mean <= 0 given those before it: by Ville's
    inequality the chance that it ever reaches 1/a is at most a.
    """
    assert gains.ndim == 1 and (np.abs(gains) <= 1 + 1e-12).all()
    each = np.log1p(_BETS[:, None] * gains[None, :]).cumsum(1)
    return np.logaddexp.reduce(each, axis=0) - math.log(len(_BETS))


def fall(values: Sequence[float], low: float = 0.0, high: float = 1.0) -> Fall:
    """Sequential test that the mean of a series never falls, against that it does.

    At each of ``splits`` the values before it, in reverse order, are paired with those after it. If
    the mean never falls, the earlier value of a pair is not larger on average, so betting that it
    is larger gains nothing. The splits share the error with weights 1/(i(i+1)). The smallest p so
    far counts, so the test may be read after every value at no cost in error.

    Args:
        values: In the order in which they were drawn, independent given their means.
        low, high: Bounds of the values.

    Raises:
        DataError: a value is not within the bounds.
    """
    x = np.asarray(values, np.float64)
    if x.size and not (np.isfinite(x).all() and low <= x.min() and x.max() <= high):
        raise DataError(
            f"a gold score lies outside [{low:g}, {high:g}]; set audit.low and audit.high to the bounds "
            "of the gold score"
        )
    best = Fall(1.0, 0, math.nan, math.nan)
    for i, at in enumerate(splits(x.size), 1):
        n = min(at, x.size - at)
        before, after = x[at - n : at][::-1], x[at : at + n]
        wealth = log_wealth((before - after) / (high - low))
        p = math.exp(min(0.0, math.log(i * (i + 1)) - float(wealth.max())))
        if p < best.p or best.split == 0:
            best = Fall(p, at, float(before.mean()), float(after.mean()))
    return best
