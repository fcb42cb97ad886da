"""Logistic regression with errors that hold when rows of one item hang together."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit, ndtr, ndtri

from trimtab.stats.uncertainty import Interval

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


def newton(
    x_NP: Floats, y_N: Floats, weight_BN: Floats, ridge_P: Floats, steps: int = 60
) -> Floats:
    """Coefficients [B, P] of greatest penalised likelihood, one fit for each row of weights."""
    coef = np.zeros((len(weight_BN), x_NP.shape[1]))
    for _ in range(steps):
        p = expit(coef @ x_NP.T)
        slope = (weight_BN * (y_N - p)) @ x_NP - ridge_P * coef
        curve = weight_BN * p * (1 - p)
        hessian = np.einsum("bn,np,nq->bpq", curve, x_NP, x_NP, optimize=True) + np.diag(ridge_P)
        step = np.linalg.solve(hessian + 1e-12 * np.eye(x_NP.shape[1]), slope[..., None])[..., 0]
        coef = coef + step / np.maximum(np.abs(step).max(-1, keepdims=True) / 2, 1.0)
        if np.abs(step).max() < 1e-10:
            break
    return coef


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
        clusters: What each row belongs to; rows of one cluster may hang together. None: each by
            itself.
        ridge: Weight of b^2 / 2, which keeps b finite when something is always so.
    """
    x, y = np.asarray(x_NP, np.float64), np.asarray(y_N, np.float64)
    size = x.shape[1]
    coef = newton(x, y, np.ones((1, len(y))), np.full(size, ridge))[0]
    p = expit(x @ coef)
    bread = np.linalg.pinv((x * (p * (1 - p))[:, None]).T @ x + ridge * np.eye(size))
    scores = x * (y - p)[:, None]
    if clusters is not None:
        places: dict[Hashable, int] = {}
        owner = np.array([places.setdefault(c, len(places)) for c in clusters], dtype=np.intp)
        summed = np.zeros((len(places), size))
        np.add.at(summed, owner, scores)
        scores = summed
    n = len(scores)
    meat = scores.T @ scores * (n / max(n - 1, 1))
    return Fit(coef, bread @ meat @ bread)


FURTHEST = 10.0
"""Nats at which the search for an end of an interval stops."""


class ScoreTest:
    """Rao's efficient score test of one coefficient, the others refitted under it.

    It holds where Wald's fails: when something is nearly always so, a coefficient runs off and
    its standard error says nothing. The variance is the larger of the model's and the sandwich
    over clusters, so that neither rows that hang together nor few telling rows make it too sure.
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
        places: dict[Hashable, int] = {}
        names = range(len(y_N)) if clusters is None else clusters
        self.owner = np.array([places.setdefault(c, len(places)) for c in names], dtype=np.intp)
        self.others = np.zeros(self.x.shape[1])

    def statistic(self, value: float) -> float:
        """Signed root of the statistic for "the coefficient is ``value``": standard normal if it
        is, positive if it seems larger."""
        x, offset = self.x, value * self.z
        coef = self.others
        for _ in range(60):
            p = expit(x @ coef + offset)
            weight = p * (1 - p)
            curve = (x * weight[:, None]).T @ x + (self.ridge + 1e-12) * np.eye(x.shape[1])
            step = np.linalg.solve(curve, x.T @ (self.y - p) - self.ridge * coef)
            coef = coef + step / max(np.abs(step).max(initial=0.0) / 2, 1.0)
            if np.abs(step).max(initial=0.0) < 1e-8:
                break
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
        """Two-sided, of "the coefficient is 0"."""
        return float(2 * ndtr(-abs(self.statistic(0.0))))

    def interval(self, middle: float, confidence: float = 0.95) -> Interval:
        """The values that are not refused; an end beyond ``FURTHEST`` from 0 is told as that."""
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
