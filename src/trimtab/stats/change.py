"""Tests for a change in a series: slope, two means, two rates, a lasting drop."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from trimtab.stats.uncertainty import Estimate

Array = npt.NDArray[np.float64]


def slope(x: npt.ArrayLike, y: npt.ArrayLike, confidence: float = 0.95) -> Estimate:
    """Slope of the least squares line of y on x, with its interval (Student's t).

    (0, -inf, inf) with fewer than three points or no spread in x.

    >>> slope([0, 1, 2, 3], [1, 3, 5, 7])
    Estimate(value=2.0, low=2.0, high=2.0)
    """
    from scipy.stats import linregress  # slow to import

    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    if len(a) < 3 or np.ptp(a) == 0:
        return Estimate(0.0, -math.inf, math.inf)
    if np.ptp(b) == 0:  # linregress gives NaN as the error of a constant series
        return Estimate(0.0, 0.0, 0.0)
    line: Any = linregress(a, b)
    half = float(stdtrit(len(a) - 2, 0.5 + confidence / 2) * line.stderr)
    return Estimate(float(line.slope), float(line.slope) - half, float(line.slope) + half)


def onset(steps: npt.ArrayLike, condition: npt.ArrayLike, hold: int = 3) -> int | None:
    """The first step at which a condition starts to be true ``hold`` times in a row.

    >>> onset([10, 20, 30, 40, 50], [True, False, True, True, True], 2)
    30
    """
    run = 0
    at = np.asarray(steps)
    for i, on in enumerate(np.asarray(condition, bool)):
        run = run + 1 if on else 0
        if run == hold:
            return int(at[i - hold + 1])
    return None


def two_rates(k: int, n: int, k2: int, n2: int) -> float:
    """z-test of the second rate above the first, pooled variance; 0 where either has no trials.

    >>> round(two_rates(10, 100, 30, 100), 3)
    3.536
    """
    if n == 0 or n2 == 0:
        return 0.0
    pooled = (k + k2) / (n + n2)
    spread = pooled * (1 - pooled) * (1 / n + 1 / n2)
    return (k2 / n2 - k / n) / math.sqrt(spread) if spread > 0 else 0.0


def _welch(low: npt.ArrayLike, high: npt.ArrayLike) -> tuple[float, float]:
    """Welch's t of the mean of ``high`` above that of ``low``, and its one-sided p.

    (0, 1) with fewer than two values on a side, or where neither varies and the means are equal.
    """
    from scipy.stats import ttest_ind_from_stats  # slow to import

    x, y = np.asarray(low, np.float64), np.asarray(high, np.float64)
    if min(len(x), len(y)) < 2:
        return 0.0, 1.0
    # From moments, because ttest_ind warns about series that do not vary.
    t, p = ttest_ind_from_stats(
        y.mean(),
        y.std(ddof=1),
        len(y),
        x.mean(),
        x.std(ddof=1),
        len(x),
        equal_var=False,
        alternative="greater",
    )
    return (0.0, 1.0) if math.isnan(t) else (float(t), float(p))


def two_means(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Welch's t of the second mean above the first; infinite where neither varies and they differ."""
    return _welch(a, b)[0]


def welch(before: npt.ArrayLike, after: npt.ArrayLike) -> float:
    """One-sided p of Welch's test that the mean of ``before`` is above that of ``after``.

    1 with fewer than two values on a side; 0 or 1 where neither varies.

    >>> round(welch([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), 3)
    0.5
    """
    return _welch(after, before)[1]


SHUFFLES = 2000
CELLS = 160
"""``drop`` averages neighbouring values of a longer series down to this many."""


def drop(
    values: Sequence[float], planned: int = 0, first: int = 8, ratio: float = 1.5
) -> tuple[float, int]:
    """Group-sequential test that the mean of a series has fallen and stayed down.

    The values before and after splits at 8, 12, 18, ... values are compared. The statistic of a
    split is a random walk in the information of that comparison (Lan and DeMets 1983); p is the
    share of permutations of the values that would reach it after any of the ``planned`` values. The
    test may therefore be read at any time, at about twice the p of a single test at the end.

    Args:
        values: In order; exchangeable under the null.
        planned: Number of values at the end of the run; at least the number so far.
        first: Minimum number of values on either side of a split.
        ratio: Of successive split positions.

    Returns:
        (p, number of values before the fall); (1, 0) with fewer than 2 * ``first`` values.

    >>> drop([1.0, 0.9] * 10 + [0.1, 0.2] * 10)[1]
    18
    """
    x = np.asarray(values, np.float64)
    if len(x) < 2 * first:
        return 1.0, 0
    planned = max(planned, len(x))
    cell = math.ceil(planned / CELLS)
    if cell > 1:
        cells = len(x) // cell
        x = x[len(x) - cells * cell :].reshape(cells, cell).mean(1)  # drops the oldest
        planned //= cell
        if len(x) < 2 * first:
            return 1.0, 0
    splits: list[int] = []
    while (at := int(first * ratio ** len(splits))) <= planned - first:
        splits.append(at)
    sums = x.cumsum()[None]
    now = [_down(sums, at, len(x), planned)[0, 0] for at in splits if at <= len(x) - first]
    best = int(np.argmax(now))
    rng = np.random.default_rng(0)
    paths = (
        rng.permuted(np.broadcast_to(x, (SHUFFLES, len(x))), axis=1)
        if planned == len(x)
        else rng.choice(x, (SHUFFLES, planned))
    )
    sums = paths.cumsum(1)
    far = np.max([_down(sums, at, at + first, planned).max(1) for at in splits], axis=0)
    p = (1 + int((far >= now[best] - 1e-9).sum())) / (1 + SHUFFLES)
    return p, splits[best] * cell + len(values) - len(x) * cell


def _down(sums: Array, at: int, since: int, planned: int) -> Array:
    """Mean before position ``at`` minus the mean after it, as the series grows.

    Returns:
        [paths, values - since + 1], from ``since`` values on, in standard errors at the planned end
        for values of variance 1.
    """
    n = np.arange(since, sums.shape[1] + 1)
    before = sums[:, at - 1 : at] / at
    after = (sums[:, since - 1 :] - sums[:, at - 1 : at]) / (n - at)
    information = 1 / (1 / at + 1 / (n - at))
    information_at_end = 1 / (1 / at + 1 / (planned - at))
    return (before - after) * information / math.sqrt(information_at_end)
