"""Logistic regression whose errors are valid when rows of one cluster are correlated."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit, ndtr, ndtri

from trimtab.stats.newton import fit_logistic
from trimtab.stats.uncertainty import Interval, cluster_ids

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Fit:
    """Coefficients with their covariance."""

    coef_P: Floats
    cov_PP: Floats

    def interval(self, index: int, confidence: float = 0.95) -> Interval:
        """Wald interval of a coefficient."""
        half = float(ndtri(0.5 + confidence / 2) * np.sqrt(max(self.cov_PP[index, index], 0.0)))
        return float(self.coef_P[index]) - half, float(self.coef_P[index]) + half


def logistic(
    x_NP: npt.ArrayLike,
    y_N: npt.ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    ridge: float = 0.0,
) -> Fit:
    """P(y) = s(x b) by maximum likelihood, with a sandwich covariance over clusters.

    Args:
        x_NP: Columns; a constant among them if there is to be one.
        y_N: In [0, 1]; a tie is a half (the quasi-likelihood of Papke and Wooldridge 1996).
        clusters: Cluster of each row; rows of one cluster may be correlated. None: rows are
            independent.
        ridge: Weight of b^2 / 2, which keeps b finite when a column separates the outcomes.
    """
    x, y = np.asarray(x_NP, np.float64), np.asarray(y_N, np.float64)
    size = x.shape[1]
    coef = fit_logistic(x, y, ridge)[0]
    p = expit(x @ coef)
    bread = np.linalg.pinv((x * (p * (1 - p))[:, None]).T @ x + ridge * np.eye(size))
    scores = x * (y - p)[:, None]
    if clusters is not None:
        owner = cluster_ids(clusters)
        summed = np.zeros((int(owner.max(initial=-1)) + 1, size))
        np.add.at(summed, owner, scores)
        scores = summed
    n = len(scores)
    meat = scores.T @ scores * (n / max(n - 1, 1))
    return Fit(coef, bread @ meat @ bread)


FURTHEST = 10.0
"""Nats: the search for the end of an interval stops here."""


class ScoreTest:
    """Rao's efficient score test of one coefficient; the others are refitted for each null value.

    It is valid where Wald's test fails: with nearly separated outcomes a coefficient diverges and
    its standard error means nothing. The variance is the larger of the model's and the sandwich
    over clusters, so the test stays conservative with correlated rows and with few rows.
    """

    def __init__(
        self,
        x_NP: Floats,
        y_N: Floats,
        column: int,
        clusters: Sequence[Hashable] | None = None,
        ridge: float = 0.01,
    ) -> None:
        self.x = np.delete(x_NP, column, 1)
        self.z, self.y, self.ridge = x_NP[:, column], y_N, ridge
        self.owner = cluster_ids(range(len(y_N)) if clusters is None else clusters)
        self.others = np.zeros(self.x.shape[1])

    def statistic(self, value: float) -> float:
        """Signed root of the score statistic for "the coefficient is ``value``".

        Standard normal under the null, positive where the data favour a larger coefficient.
        """
        x, offset = self.x, value * self.z
        coef = fit_logistic(x, self.y, self.ridge, None, offset, self.others, tol=1e-8)[0]
        self.others = coef
        p = expit(x @ coef + offset)
        weight = p * (1 - p)
        curve = (x * weight[:, None]).T @ x + (self.ridge + 1e-12) * np.eye(x.shape[1])
        rest = self.z - x @ np.linalg.solve(curve, (x * weight[:, None]).T @ self.z)
        scores = (self.y - p) * rest
        model = float(weight @ rest**2)
        robust = float((np.bincount(self.owner, weights=scores) ** 2).sum())
        spread = max(model, robust)
        return float(scores.sum()) / spread**0.5 if spread > 0 else 0.0

    def p_value(self) -> float:
        """Two-sided p-value of "the coefficient is 0"."""
        return float(2 * ndtr(-abs(self.statistic(0.0))))

    def interval(self, middle: float, confidence: float = 0.95) -> Interval:
        """The values that the test does not reject, clipped to ``FURTHEST`` from 0.

        Args:
            middle: The estimate, from which both ends are searched.
        """
        bar = float(ndtri(0.5 + confidence / 2))
        middle = float(np.clip(middle, -FURTHEST, FURTHEST))
        start = self.others
        ends: list[float] = []
        for far, sign in ((-FURTHEST, 1.0), (FURTHEST, -1.0)):
            self.others = start
            inside, outside = middle, far
            if sign * self.statistic(far) < bar:
                ends.append(far)
                continue
            self.others = start
            for _ in range(30):
                between = (inside + outside) / 2
                if sign * self.statistic(between) < bar:
                    inside = between
                else:
                    outside = between
                if abs(outside - inside) < 1e-3:
                    break
            ends.append(outside)
        return ends[0], ends[1]
