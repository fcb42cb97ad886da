"""How well scores tell right from wrong: area under the curve, first errors found."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from trimtab.stats.uncertainty import Estimate


def auc(scores: npt.ArrayLike, right: npt.ArrayLike) -> float:
    """Probability that a right one scores above a wrong one, ties half; NaN with one kind only.

    >>> auc([0.9, 0.4, 0.6, 0.4], [1, 1, 0, 0])
    0.625
    """
    x, y = np.asarray(scores, np.float64), np.asarray(right, bool)
    n, m = int(y.sum()), int((~y).sum())
    if n == 0 or m == 0:
        return math.nan
    return float((rankdata(x)[y].sum() - n * (n + 1) / 2) / (n * m))


def bootstrap_auc(
    scores: Sequence[float],
    right: Sequence[bool],
    clusters: Sequence[Hashable],
    n: int = 300,
    seed: int = 0,
) -> Estimate:
    """``auc`` with its 95 % percentile bootstrap interval over whole ``clusters``."""
    x, y = np.asarray(scores, np.float64), np.asarray(right, bool)
    members: dict[Hashable, list[int]] = {}
    for i, c in enumerate(clusters):
        members.setdefault(c, []).append(i)
    rows = [np.array(m) for m in members.values()]
    rng = np.random.default_rng(seed)
    drawn: list[float] = []
    for _ in range(n if rows else 0):
        picked = np.concatenate([rows[i] for i in rng.integers(0, len(rows), len(rows))])
        drawn.append(auc(x[picked], y[picked]))
    known = [d for d in drawn if not math.isnan(d)]
    if not known:
        return auc(x, y), math.nan, math.nan
    low, high = np.quantile(known, [0.025, 0.975])
    return auc(x, y), float(low), float(high)


def first_error(
    scores: Sequence[Sequence[float]], labels: Sequence[Sequence[float]], threshold: float = 0.5
) -> dict[str, float]:
    """How often the first wrong step is found exactly, and a solution without one is left alone.

    Args:
        scores: P(correct) of each solution's steps; a step below ``threshold`` is called wrong.
        labels: The truth; below 1/2 is wrong.
        threshold: Of the scores.

    Returns:
        "first_error" over solutions with a wrong step, "all_correct" over the others, and
        "first_error_f1", their harmonic mean (as in ProcessBench, 2412.06559); NaN without such
        solutions.

    >>> first_error([[0.9, 0.2], [0.9, 0.8]], [[1, 0], [1, 1]])["first_error_f1"]
    1.0
    """

    def first(values: Sequence[float], below: float) -> int:
        return next((i for i, v in enumerate(values) if v < below), -1)

    wrong: list[bool] = []
    clean: list[bool] = []
    for mine, truth in zip(scores, labels, strict=True):
        want = first(truth, 0.5)
        (clean if want < 0 else wrong).append(first(mine, threshold) == want)
    a = float(np.mean(wrong)) if wrong else math.nan
    b = float(np.mean(clean)) if clean else math.nan
    f1 = math.nan if math.isnan(a + b) else 2 * a * b / (a + b) if a + b > 0 else 0.0
    return {"first_error": a, "all_correct": b, "first_error_f1": f1}
