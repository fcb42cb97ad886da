"""Whether a series moved, since when, and a test that may be read at any time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

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


def anytime_p(gaps: Sequence[float], bound: float = 1.0) -> list[float]:
    """p-values of "the mean of these gaps is 0 or less" after each of them, valid at every look.

    A bet on each gap, sized by those before it, against odds that are fair under the hypothesis:
    wealth is a supermartingale, so by Ville's inequality 1/wealth at its highest is a p-value
    whenever it is read (Waudby-Smith and Ramdas, 2010.09686).

    Args:
        gaps: In the order seen; each in [-bound, bound].
        bound: Known before the first is seen.
    """
    wealth = best = 0.0  # logarithms
    total, squares = 0.0, 0.25
    found: list[float] = []
    for i, gap in enumerate(gaps):
        x = min(max(gap / bound, -1.0), 1.0)
        mean = total / (i + 1)
        stake = min(max(mean / (squares / (i + 1)), 0.0), 0.75)
        wealth += math.log1p(stake * x)
        best = max(best, wealth)
        found.append(math.exp(-best))
        total += x
        squares += x * x
    return found
