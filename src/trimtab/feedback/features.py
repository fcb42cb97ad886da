"""Calibration of a judge on a few human labels."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression
from scipy.special import expit

from trimtab.feedback.judgement import Item
from trimtab.feedback.votes import Vote
from trimtab.stats.uncertainty import ece

Array = npt.NDArray[np.float64]
Method = Literal["platt", "isotonic"]

_CLIP = 6.0
_RIDGE = 1e-2
"""Weight of the penalty on coefficients, in labels: keeps them finite when a few labels agree."""


def vote_features(
    cast: Sequence[Vote],
    items: Mapping[str, Item],
    covariates: Sequence[str],
    patterns: Mapping[str, str],
) -> list[tuple[float, ...]]:
    """Features of a judge's votes [N][F]: the judge's log-odds, then one per covariate. All change
    sign when the two completions are swapped.

    Args:
        cast: The judge's votes.
        items: By id.
        covariates: Of "length" (words) and "position" (which was shown first).
        patterns: Regular expressions by name: whether a completion matches is a covariate.
    """
    compiled = [re.compile(p) for p in patterns.values()]
    rows: list[tuple[float, ...]] = []
    for vote in cast:
        item, a, b = vote.pair
        judgement = vote.judgement
        first, second = (items[item].completions[k] for k in (a, b))
        # A verdict without a probability is one unit: the slope that is fitted says what it is worth.
        row = [_logit(vote.prob) if judgement.prob is not None else 2 * vote.prob - 1]
        if "length" in covariates:
            row.append(float(len(first.split()) - len(second.split())))
        if "position" in covariates:
            position = 1.0 if vote.a_shown_first else -1.0
            row.append(0.0 if judgement.shown is None else position)
        row += [float(bool(p.search(first))) - float(bool(p.search(second))) for p in compiled]
        rows.append(tuple(row))
    return rows


def _logit(p: float) -> float:
    p = min(max(p, 1e-9), 1 - 1e-9)
    return max(-_CLIP, min(_CLIP, math.log(p / (1 - p))))


@dataclass(frozen=True, slots=True)
class Platt:
    """P(people prefer i) = sigmoid(w . features), without an intercept: swapping i and j gives
    1 - P."""

    weights: tuple[float, ...]
    errors: tuple[float, ...]
    """Standard errors of the weights."""

    def __call__(self, x: Array) -> Array:
        """P for features [N, F]."""
        return expit(x @ np.array(self.weights))


def fit_platt(x: Array, y: Array) -> Platt:
    """Logistic regression by Newton's method, with a slight ridge.

    Args:
        x: Features [N, F].
        y: 1 where people prefer i, 0 where j, 1/2 where they tie [N].
    """
    w = np.zeros(x.shape[1])
    scale = np.maximum(x.std(0), 1e-9)
    z = x / scale
    ridge = _RIDGE * np.eye(x.shape[1])
    for _ in range(100):
        p = expit(z @ w)
        slope = z.T @ (y - p) - _RIDGE * w
        bend = (z * (p * (1 - p))[:, None]).T @ z + ridge
        step = np.linalg.solve(bend, slope)
        # Half steps where a whole one would run away on separable labels.
        step *= min(1.0, 2.0 / max(1e-12, float(np.abs(step).max())))
        w = w + step
        if float(np.abs(step).max()) < 1e-10:
            break
    p = expit(z @ w)
    bend = (z * (p * (1 - p))[:, None]).T @ z + ridge
    errors = np.sqrt(np.diag(np.linalg.inv(bend)))
    return Platt(tuple((w / scale).tolist()), tuple((errors / scale).tolist()))


@dataclass(frozen=True, slots=True)
class Isotonic:
    """P(people prefer i) as a rising step function of the judge's log-odds, and 1 - P of its
    mirror image."""

    at: tuple[float, ...]
    value: tuple[float, ...]

    def __call__(self, x: Array) -> Array:
        """P for features [N, F], of which the first alone counts; in between, a straight line."""
        return np.interp(x[:, 0], np.array(self.at), np.array(self.value))


def fit_isotonic(x: Array, y: Array) -> Isotonic:
    """Pool adjacent violators on each label and its mirror image."""
    odds = np.concatenate([x[:, 0], -x[:, 0]])
    right = np.concatenate([y, 1 - y])
    places, which = np.unique(odds, return_inverse=True)
    counts = np.bincount(which).astype(np.float64)
    means = np.bincount(which, weights=right) / counts
    fitted: Array = isotonic_regression(means, weights=counts).x
    return Isotonic(tuple(places.tolist()), tuple(fitted.tolist()))


def fit(method: Method, x: Array, y: Array) -> Platt | Isotonic:
    """By name."""
    return fit_platt(x, y) if method == "platt" else fit_isotonic(x, y)


def cross_fitted(method: Method, x: Array, y: Array, owner: Sequence[str], folds: int) -> Array:
    """P of each pair by a fit that has not seen its item [N]."""
    names = sorted(set(owner))
    fold_of = {name: i % folds for i, name in enumerate(names)}
    fold = np.array([fold_of[o] for o in owner])
    found = np.full(len(y), 0.5)
    for k in range(folds):
        mine = fold == k
        if mine.any() and not mine.all():
            found[mine] = fit(method, x[~mine], y[~mine])(x[mine])
    return found


def quality(p: Array, y: Array) -> dict[str, float]:
    """Of probabilities against people's choices (ties half): ``accuracy`` on pairs that people do
    not tie (1/2 where p is), ``ece``, ``log_loss`` in nats (p kept within 1e-3 of 0 and 1)."""
    sure = np.maximum(p, 1 - p)
    right = np.where(p == 0.5, 0.5, np.where(p > 0.5, y, 1 - y))
    untied = y != 0.5
    q = np.clip(p, 1e-3, 1 - 1e-3)
    loss = -(y * np.log(q) + (1 - y) * np.log(1 - q))
    return {
        "accuracy": float(right[untied].mean()) if untied.any() else math.nan,
        "ece": ece(sure, right, bins=10),
        "log_loss": float(loss.mean()),
    }
