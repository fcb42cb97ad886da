"""How well scores separate correct from wrong: ROC AUC and location of the first error."""

import math
from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from trimtab.stats.uncertainty import Estimate, cluster_ids


def auc(scores: npt.ArrayLike, right: npt.ArrayLike) -> float:
    """Probability that a correct item scores above a wrong one, ties half; NaN with one class.

    >>> auc([0.9, 0.4, 0.6, 0.4], [1, 1, 0, 0])
    0.625
    """
    from scipy.stats import rankdata  # slow to import

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
    owner = cluster_ids(clusters)
    rows = [np.flatnonzero(owner == c) for c in range(int(owner.max(initial=-1)) + 1)]
    rng = np.random.default_rng(seed)
    drawn: list[float] = []
    for _ in range(n if rows else 0):
        picked = np.concatenate([rows[i] for i in rng.integers(0, len(rows), len(rows))])
        drawn.append(auc(x[picked], y[picked]))
    finite = [d for d in drawn if not math.isnan(d)]
    if not finite:
        return Estimate(auc(x, y), math.nan, math.nan)
    low, high = np.quantile(finite, [0.025, 0.975])
    return Estimate(auc(x, y), float(low), float(high))


def first_error(
    scores: Sequence[Sequence[float]], labels: Sequence[Sequence[float]], threshold: float = 0.5
) -> dict[str, float]:
    """How often the first wrong step is located exactly, and a correct solution is accepted.

    Args:
        scores: P(correct) of each reasoning step of each solution.
        labels: Ground truth; below 0.5 is wrong.
        threshold: A step that scores below it is predicted to be wrong.

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
    for step_scores, truth in zip(scores, labels, strict=True):
        want = first(truth, 0.5)
        (clean if want < 0 else wrong).append(first(step_scores, threshold) == want)
    a = float(np.mean(wrong)) if wrong else math.nan
    b = float(np.mean(clean)) if clean else math.nan
    f1 = math.nan if math.isnan(a + b) else 2 * a * b / (a + b) if a + b > 0 else 0.0
    return {"first_error": a, "all_correct": b, "first_error_f1": f1}
