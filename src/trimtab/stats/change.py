"""Whether a series moved, and since when."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit

from trimtab.stats.uncertainty import Estimate

Array = npt.NDArray[np.float64]


def slope(x: npt.ArrayLike, y: npt.ArrayLike, confidence: float = 0.95) -> Estimate:
    """Slope of the least squares line of y on x, with its interval (Student's t).

    (0, -inf, inf) with fewer than three points or no spread in x.

    >>> slope([0, 1, 2, 3], [1, 3, 5, 7])
    (2.0, 2.0, 2.0)
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    centred = a - a.mean() if len(a) else a
    xx = float((centred**2).sum())
    if len(a) < 3 or xx == 0:
        return 0.0, -math.inf, math.inf
    m = float((centred * b).sum()) / xx
    rest = b - b.mean() - m * centred
    error = math.sqrt(float((rest**2).sum()) / (len(a) - 2) / xx)
    half = float(stdtrit(len(a) - 2, 0.5 + confidence / 2)) * error
    return m, m - half, m + half


def onset(steps: npt.ArrayLike, there: npt.ArrayLike, hold: int = 3) -> int | None:
    """The first step from which a condition held ``hold`` times in a row.

    >>> onset([10, 20, 30, 40, 50], [True, False, True, True, True], 2)
    30
    """
    run = 0
    at = np.asarray(steps)
    for i, on in enumerate(np.asarray(there, bool)):
        run = run + 1 if on else 0
        if run == hold:
            return int(at[i - hold + 1])
    return None


def two_rates(k: int, n: int, k2: int, n2: int) -> float:
    """z of the second rate above the first, pooled; 0 where either has no trials.

    >>> round(two_rates(10, 100, 30, 100), 3)
    3.536
    """
    if n == 0 or n2 == 0:
        return 0.0
    pooled = (k + k2) / (n + n2)
    spread = pooled * (1 - pooled) * (1 / n + 1 / n2)
    return (k2 / n2 - k / n) / math.sqrt(spread) if spread > 0 else 0.0


def two_means(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Welch's t of the second mean above the first; infinite where neither varies and they differ."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if len(x) < 2 or len(y) < 2:
        return 0.0
    gap = float(y.mean() - x.mean())
    error = math.sqrt(float(x.var(ddof=1)) / len(x) + float(y.var(ddof=1)) / len(y))
    return gap / error if error > 0 else math.copysign(math.inf, gap) if gap else 0.0


def welch(before: npt.ArrayLike, after: npt.ArrayLike) -> float:
    """One-sided p of Welch's test that the mean of ``after`` is not below that of ``before``.

    1 with fewer than two values on a side; 0 or 1 where neither varies.

    >>> round(welch([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), 3)
    0.5
    """
    x, y = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if min(len(x), len(y)) < 2:
        return 1.0
    t = two_means(y, x)
    a, b = float(x.var(ddof=1)) / len(x), float(y.var(ddof=1)) / len(y)
    if a + b == 0 or not math.isfinite(t):
        return float(t <= 0)
    freedom = (a + b) ** 2 / (a * a / (len(x) - 1) + b * b / (len(y) - 1))
    return float(stdtr(freedom, -t))


def drop(values: Sequence[float], first: int = 8, ratio: float = 1.5) -> tuple[float, int]:
    """Whether a mean has fallen at some point of a series, and where that shows best: p, values before.

    Welch's one-sided p of what comes before against what comes after, at splits after 8, 12, 18, ...
    values, the least of them multiplied by the number of splits. (1, 0) with fewer than 16 values. For
    a test that may be read after every value see ``stats.sequential``.

    >>> drop([1.0, 0.9] * 10 + [0.1, 0.2] * 10)[1]
    18
    """
    x = np.asarray(values, np.float64)
    best, at, looked = 1.0, 0, 0
    split = float(first)
    while (n := int(split)) <= len(x) - first:
        p = welch(x[:n], x[n:])
        if p < best:
            best, at = p, n
        looked += 1
        split *= ratio
    return min(1.0, best * looked) if at else 1.0, at
