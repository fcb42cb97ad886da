"""Confidence intervals of proportions, means and win rates, and calibration error."""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

Interval = tuple[float, float]


class Estimate(NamedTuple):
    """A value with the low and high end of its interval, 95 % unless stated otherwise."""

    value: float
    low: float
    high: float

    def summary(self) -> dict[str, float]:
        """The mean and its interval, as ``summary.json`` has them."""
        return {"mean": self.value, "low": self.low, "high": self.high}


_NONE = Estimate(math.nan, math.nan, math.nan)

_CHUNK = 4_000_000


def cluster_ids(clusters: Iterable[Hashable]) -> npt.NDArray[np.intp]:
    """Number of each row's cluster, 0, 1, ... in the order of first appearance.

    >>> cluster_ids(["b", "a", "b"]).tolist()
    [0, 1, 0]
    """
    ids: dict[Hashable, int] = {}
    return np.array([ids.setdefault(c, len(ids)) for c in clusters], dtype=np.intp)


def wilson(k: float, n: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval of k successes in n independent trials (Wilson 1927); ties may be ½.

    >>> low, high = wilson(5, 10)
    >>> round(low, 4), round(high, 4)
    (0.2366, 0.7634)
    """
    assert 0 <= k <= n, (k, n)
    if n == 0:
        return 0.0, 1.0
    z = float(ndtri(0.5 + confidence / 2))
    rate = k / n
    scale = 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / scale
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_mean(
    values: Sequence[float] | npt.NDArray[np.floating],
    clusters: Sequence[Hashable] | None = None,
    n: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """Mean of ``values`` with a percentile bootstrap interval over whole ``clusters``.

    Rows of one prompt are not independent: with the prompt ids as ``clusters``, prompts are drawn,
    each with all its rows. Without clusters every row is drawn on its own.

    Returns:
        (mean, low, high); (nan, nan, nan) without values.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return _NONE
    if clusters is None:
        sums, counts = array, np.ones_like(array)
    else:
        assert len(clusters) == array.size, (len(clusters), array.size)
        owner = cluster_ids(clusters)
        sums = np.bincount(owner, weights=array)
        counts = np.bincount(owner).astype(np.float64)
    rng = np.random.default_rng(seed)
    means: list[npt.NDArray[np.float64]] = []
    step = max(1, _CHUNK // sums.size)  # bounds the memory of the draws
    for start in range(0, n, step):
        drawn = rng.integers(0, sums.size, size=(min(step, n - start), sums.size))
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Estimate(float(array.mean()), float(low), float(high))


def draws(units: int, n: int = 1000, seed: int = 0) -> npt.NDArray[np.float64]:
    """How often each of ``units`` occurs in each of ``n`` bootstrap samples [n, units]."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(units, np.full(units, 1 / units), size=n).astype(np.float64)


def bootstrap_sums(
    parts_UD: npt.ArrayLike,
    figure: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]],
    n: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """A statistic of sums over units, with a percentile bootstrap interval over units.

    Agreement coefficients are functions of sums over items, so resampling only reweights the items.

    Args:
        parts_UD: Terms of each unit (item) in the D sums.
        figure: Sums [..., D] to statistics [...]; draws for which it is NaN are dropped.

    Returns:
        (statistic, low, high); (nan, nan, nan) without units.
    """
    parts = np.asarray(parts_UD, dtype=np.float64)
    if len(parts) == 0:
        return _NONE
    value = float(figure(parts.sum(0)))
    figures = figure(draws(len(parts), n, seed) @ parts)
    figures = figures[np.isfinite(figures)]
    if figures.size == 0:
        return Estimate(value, math.nan, math.nan)
    tail = (1 - confidence) / 2
    low, high = np.quantile(figures, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def win_rate(
    a: Sequence[float],
    b: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    n: int = 2000,
    seed: int = 0,
) -> Estimate:
    """How often ``a`` beats ``b``, (wins + ½ ties) / N, with its bootstrap interval over prompts.

    >>> win_rate([1, 0, 2], [0, 0, 3])[0]
    0.5
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    assert x.shape == y.shape, (x.shape, y.shape)
    return bootstrap_mean((x > y) + 0.5 * (x == y), clusters, n, seed)


def calibration_bins(
    confidence: Sequence[float] | npt.NDArray[np.floating],
    correct: Sequence[float] | npt.NDArray[np.floating],
    bins: int | Sequence[float] = 15,
) -> list[dict[str, float]]:
    """Mean confidence, accuracy and count of each bin that is not empty.

    Args:
        confidence: Predicted probabilities.
        correct: 1, 0, or 0.5 for a tie.
        bins: Number of equal bins of [0, 1], or their edges; a bin includes its lower edge, the
            last one both.
    """
    sure, right = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    assert sure.shape == right.shape, (sure.shape, right.shape)
    edges = np.linspace(0, 1, bins + 1) if isinstance(bins, int) else np.asarray(bins, np.float64)
    if sure.size:
        assert edges[0] <= sure.min(), "confidence below the first bin edge"
        assert sure.max() <= edges[-1], "confidence above the last bin edge"
    place = np.clip(np.searchsorted(edges, sure, side="right") - 1, 0, len(edges) - 2)
    return [
        {
            "confidence": float(sure[place == b].mean()),
            "accuracy": float(right[place == b].mean()),
            "count": int((place == b).sum()),
        }
        for b in np.unique(place)
    ]


def ece(
    confidence: Sequence[float] | npt.NDArray[np.floating],
    correct: Sequence[float] | npt.NDArray[np.floating],
    bins: int | Sequence[float] = 15,
) -> float:
    """Expected calibration error, Σ_b (n_b/n)·|accuracy_b − confidence_b| (Naeini et al. 2015).

    >>> round(ece([0.9, 0.9, 0.6, 0.6], [1, 0, 1, 1], bins=[0.5, 0.75, 1]), 9)
    0.4
    """
    parts = calibration_bins(confidence, correct, bins)
    total = sum(b["count"] for b in parts)
    if total == 0:
        return math.nan
    return sum(b["count"] / total * abs(b["accuracy"] - b["confidence"]) for b in parts)
