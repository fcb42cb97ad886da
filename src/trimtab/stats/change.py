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


SHUFFLES = 2000
CELLS = 160
"""Points of a series that ``drop`` looks at; a longer one is averaged over neighbours."""


def drop(
    values: Sequence[float], planned: int = 0, first: int = 8, ratio: float = 1.5
) -> tuple[float, int]:
    """Whether the mean of a series has fallen and stayed down: p, values before the fall.

    What comes before is compared with what comes after, at splits after 8, 12, 18, ... values. The
    statistic of a split walks at random with the information of that comparison (Lan and DeMets 1983);
    p is the share of shuffles of the values that would be as far down after any of the ``planned``
    values. So it may be read as often as one likes until then, for about twice the p of one reading
    at the end.

    Args:
        values: In order; exchangeable where nothing falls.
        planned: Values that there will be at the end; those there are when it is less.
        first: Values on either side of a split at least.
        ratio: From one split to the next.

    Returns:
        (1, 0) with fewer than 2 * ``first`` values.

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
        x = x[len(x) - cells * cell :].reshape(cells, cell).mean(1)  # the newest are all kept
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
    """How far the mean after ``at`` values is below that before, after ``since`` values and each one
    more: [paths, values - since + 1]; in standard errors at the planned end, if values had variance 1."""
    n = np.arange(since, sums.shape[1] + 1)
    before = sums[:, at - 1 : at] / at
    after = (sums[:, since - 1 :] - sums[:, at - 1 : at]) / (n - at)
    information = 1 / (1 / at + 1 / (n - at))
    whole = 1 / (1 / at + 1 / (planned - at))
    return (before - after) * information / math.sqrt(whole)
