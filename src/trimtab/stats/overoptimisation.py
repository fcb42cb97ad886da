"""Gold reward as a function of the distance from the start (Gao et al., 2210.10760)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from trimtab.errors import DataError
from trimtab.stats.uncertainty import Estimate

Form = Literal["rl", "bon"]


@dataclass(slots=True, frozen=True)
class Overoptimisation:
    """Gold reward over d = sqrt(KL): d(alpha - beta ln d) for RL, d(alpha - beta d) for best-of-n.

    >>> round(Overoptimisation("rl", 1.0, 0.25).peak, 6), Overoptimisation("bon", 1.0, 0.25).peak
    (20.085537, 2.0)
    """

    form: Form
    alpha: float
    beta: float

    def __call__(self, d: float) -> float:
        """Gain in gold reward over the start at distance ``d`` >= 0."""
        if d == 0:
            return 0.0
        return d * (self.alpha - self.beta * (math.log(d) if self.form == "rl" else d))

    @property
    def peak(self) -> float:
        """The distance at which gold is highest; infinite when it never falls."""
        if self.beta <= 0:
            return math.inf
        if self.form == "rl":
            return math.exp(min(self.alpha / self.beta - 1.0, 700.0))
        return max(0.0, self.alpha / (2.0 * self.beta))

    @property
    def best(self) -> float:
        """Gold reward at the peak."""
        return math.inf if math.isinf(self.peak) else self(self.peak)


def fit_overoptimisation(
    kl: Sequence[float], gold: Sequence[float], form: Form
) -> Overoptimisation:
    """Least squares of gold reward on (d, d ln d) or (d, d^2).

    Args:
        kl: KL to the start, nats per completion; points at 0 carry no information and are dropped.
        gold: Gold reward minus that at the start.
        form: "rl", or "bon" for best-of-n.

    Raises:
        DataError: fewer than two different distances above 0, or a value is not finite.
    """
    d, y = np.sqrt(np.maximum(np.asarray(kl, np.float64), 0.0)), np.asarray(gold, np.float64)
    assert d.shape == y.shape, (d.shape, y.shape)
    if not (np.isfinite(d).all() and np.isfinite(y).all()):
        raise DataError("the fit needs finite KL and gold rewards; drop the failed points")
    d, y = d[d > 0], y[d > 0]
    if len(np.unique(d)) < 2:
        raise DataError("the fit needs at least two different KL above 0; measure at more steps")
    basis = np.stack([d, -d * (np.log(d) if form == "rl" else d)], axis=1)
    (alpha, beta), *_ = np.linalg.lstsq(basis, y, rcond=None)
    return Overoptimisation(form, float(alpha), float(beta))


@dataclass(slots=True, frozen=True)
class Fit:
    """A curve fitted to scores of completions at several distances, with the interval of its peak."""

    curve: Overoptimisation
    start: float
    """The fitted score at distance 0; the curve is the gain over it."""
    peak: Estimate
    """Distance of the highest score, with its 95 % bootstrap interval; infinite where the curve
    never falls."""
    r2: float
    """Share of the variance of the points' means that the curve explains; NaN without variance."""
    reach: float
    """The largest distance measured; a peak beyond it is extrapolated."""

    def __call__(self, d: float) -> float:
        """The fitted score at distance ``d``."""
        return self.start + self.curve(d)


def fit_points(
    kl: Sequence[float],
    scores: Sequence[Sequence[float]],
    form: Form = "rl",
    draws: int = 400,
    seed: int = 0,
) -> Fit:
    """Fit one of Gao's forms, with a free intercept, to scores at several distances.

    Args:
        kl: KL to the start of each point, nats per completion; may be 0.
        scores: One or more of each point's completions.
        form: "rl" or "bon".
        draws: Bootstrap draws, of completions within each point.

    Raises:
        DataError: fewer than three different distances, an empty point, or a value not finite.
    """
    d = np.sqrt(np.maximum(np.asarray(kl, np.float64), 0.0))
    if len(kl) != len(scores) or any(len(s) == 0 for s in scores):
        raise DataError("the fit needs one or more scores for each KL")
    if len(np.unique(d)) < 3:
        raise DataError("the fit needs at least three different KL; audit more steps")
    owner = np.repeat(np.arange(len(d)), [len(s) for s in scores])
    y = np.concatenate([np.asarray(s, np.float64) for s in scores])
    if not (np.isfinite(d).all() and np.isfinite(y).all()):
        raise DataError("the fit needs finite KL and scores; drop the failed completions")
    bend = d * (np.log(np.where(d > 0, d, 1.0)) if form == "rl" else d)
    basis = np.stack([np.ones_like(d), d, -bend], axis=1)
    count = np.bincount(owner).astype(np.float64)

    def solve(means: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        root = np.sqrt(count)
        coefficients, *_ = np.linalg.lstsq(basis * root[:, None], means * root, rcond=None)
        return np.asarray(coefficients, np.float64)

    def curve(coefficients: npt.NDArray[np.float64]) -> Overoptimisation:
        return Overoptimisation(form, float(coefficients[1]), float(coefficients[2]))

    means = np.bincount(owner, weights=y) / count
    coefficients = solve(means)
    total = float((count * (means - np.average(means, weights=count)) ** 2).sum())
    left = float((count * (means - basis @ coefficients) ** 2).sum())
    rng = np.random.default_rng(seed)
    first = np.concatenate([[0], np.cumsum(count)[:-1]]).astype(np.int64)
    peaks: list[float] = []
    for _ in range(draws):
        drawn = first[owner] + (rng.random(y.size) * count[owner]).astype(np.int64)
        peaks.append(curve(solve(np.bincount(owner, weights=y[drawn]) / count)).peak)
    peaks.sort()
    low, high = (peaks[round(q * (draws - 1))] for q in (0.025, 0.975))
    fitted = curve(coefficients)
    r2 = 1.0 - left / total if total > 0 else math.nan
    return Fit(fitted, float(coefficients[0]), Estimate(fitted.peak, low, high), r2, float(d.max()))
