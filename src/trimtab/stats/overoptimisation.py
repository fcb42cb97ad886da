"""Gold reward against distance from the start, as Gao et al. (2210.10760) found it to bend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trimtab.errors import DataError


@dataclass(slots=True, frozen=True)
class Overoptimisation:
    """Gold reward over d = sqrt(KL): d(alpha - beta ln d) for RL, d(alpha - beta d) for best-of-n.

    >>> round(Overoptimisation("rl", 1.0, 0.25).peak, 6), Overoptimisation("bon", 1.0, 0.25).peak
    (20.085537, 2.0)
    """

    form: Literal["rl", "bon"]
    alpha: float
    beta: float

    def __call__(self, d: float) -> float:
        """Gold reward at distance ``d`` >= 0, above that at the start."""
        if d == 0:
            return 0.0
        return d * (self.alpha - self.beta * (math.log(d) if self.form == "rl" else d))

    @property
    def peak(self) -> float:
        """The distance at which gold is highest; infinite when it never bends."""
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
    kl: Sequence[float], gold: Sequence[float], form: Literal["rl", "bon"]
) -> Overoptimisation:
    """Least squares of gold reward on (d, d ln d) or (d, d^2).

    Args:
        kl: KL to the start, nats a completion; points at 0 say nothing and are left out.
        gold: Gold reward less that at the start.
        form: "rl", or "bon" for best-of-n.

    Raises:
        DataError: fewer than two different distances above 0, or a value is not finite.
    """
    d, y = np.sqrt(np.maximum(np.asarray(kl, np.float64), 0.0)), np.asarray(gold, np.float64)
    assert d.shape == y.shape, (d.shape, y.shape)
    if not (np.isfinite(d).all() and np.isfinite(y).all()):
        raise DataError("the fit needs finite KL and gold rewards; leave failed points out")
    d, y = d[d > 0], y[d > 0]
    if len(np.unique(d)) < 2:
        raise DataError("the fit needs at least two different KL above 0; measure at more steps")
    basis = np.stack([d, -d * (np.log(d) if form == "rl" else d)], axis=1)
    (alpha, beta), *_ = np.linalg.lstsq(basis, y, rcond=None)
    return Overoptimisation(form, float(alpha), float(beta))
