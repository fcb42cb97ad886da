"""Calibration of a judge's probabilities with a few human labels."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from trimtab.stats.newton import fit_logistic
from trimtab.stats.uncertainty import ece

Floats = npt.NDArray[np.float64]
Method = Literal["platt", "isotonic"]
EDGE = 1e-4
"""Probabilities are clipped to this distance from 0 and 1."""


@dataclass(frozen=True, slots=True)
class Platt:
    """P = sigmoid(features · weights) (Platt 1999)."""

    weights: tuple[float, ...]
    errors: tuple[float, ...]
    """Standard errors of the weights."""

    def __call__(self, x_NF: Floats) -> Floats:
        """P [N] of features."""
        return expit(x_NF @ np.array(self.weights))


@dataclass(frozen=True, slots=True)
class Isotonic:
    """P as a monotone step function of the first feature, interpolated linearly (Zadrozny and
    Elkan 2002)."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __call__(self, x_NF: Floats) -> Floats:
        """P [N] of features."""
        return np.interp(x_NF[:, 0], np.array(self.x), np.array(self.y))


def fit_platt(x_NF: Floats, y_N: Floats, ridge: npt.ArrayLike | None = None) -> Platt:
    """Fit ``Platt`` by penalised maximum likelihood.

    Args:
        y_N: Human labels: 1, 0, or 0.5 for a tie.
        ridge: Weight of w²/2 per feature; 0.01 on standardised features by default, which keeps
            weights finite if a few labels agree.
    """
    scale = x_NF.std(0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    penalty = np.broadcast_to(0.01 * scale**2 if ridge is None else np.asarray(ridge), scale.shape)
    z = x_NF / scale
    w = fit_logistic(z, y_N, penalty / scale**2)[0]
    p = expit(z @ w)
    curvature = (z * (p * (1 - p))[:, None]).T @ z + np.diag(penalty / scale**2)
    errors = np.sqrt(np.diag(np.linalg.inv(curvature)))
    return Platt(tuple((w / scale).tolist()), tuple((errors / scale).tolist()))


def fit_isotonic(x_NF: Floats, y_N: Floats) -> Isotonic:
    """Least squares over monotone functions of the first feature; equal values are pooled."""
    from scipy.optimize import isotonic_regression  # slow to import

    x, group = np.unique(x_NF[:, 0], return_inverse=True)
    count = np.bincount(group).astype(np.float64)
    mean = np.bincount(group, weights=y_N) / count
    level = np.asarray(isotonic_regression(mean, weights=count).x)
    return Isotonic(tuple(x.tolist()), tuple(level.tolist()))


def fit_symmetric(method: Method, x_NF: Floats, y_N: Floats) -> Platt | Isotonic:
    """A fit without a preference for either completion: P(-features) = 1 - P(features).

    Args:
        method: "platt" has no intercept; "isotonic" is fitted on each label and its mirror image.
        x_NF: Features that change sign when the completions are swapped.
        y_N: Human labels: 1 for the first completion, 0 for the second, 0.5 for a tie.
    """
    if method == "platt":
        return fit_platt(x_NF, y_N)
    return fit_isotonic(np.concatenate([x_NF, -x_NF]), np.concatenate([y_N, 1 - y_N]))


@dataclass(frozen=True, slots=True)
class ProbabilityCalibrator:
    """Maps a judge's probabilities to calibrated ones.

    "platt" is sigmoid(slope · logit(p) + shift): a slope below 1 says that the judge is
    overconfident, and the shift is in nats in favour of the first completion.
    """

    fit: Platt | Isotonic

    def __call__(self, p: npt.ArrayLike) -> Floats:
        """Calibrated probabilities, in the shape of ``p``."""
        method: Method = "platt" if isinstance(self.fit, Platt) else "isotonic"
        return self.fit(_probability_features(method, p)).reshape(np.shape(p))


def _probability_features(method: Method, p: npt.ArrayLike) -> Floats:
    column = np.asarray(p, np.float64).reshape(-1, 1)
    if method == "isotonic":
        return column
    return np.hstack([logit(np.clip(column, EDGE, 1 - EDGE)), np.ones_like(column)])


def fit_probabilities(method: Method, p_N: Floats, y_N: Floats) -> ProbabilityCalibrator:
    """Fit on the judge's probabilities and human labels (1, 0, or 0.5 for a tie)."""
    features = _probability_features(method, p_N)
    if method == "platt":
        return ProbabilityCalibrator(fit_platt(features, y_N, ridge=0.1))
    return ProbabilityCalibrator(fit_isotonic(features, y_N))


def assign_folds(
    clusters: Sequence[Hashable], folds: int, seed: int | None = None
) -> npt.NDArray[np.intp]:
    """Fold of each row [N]; rows of one cluster share it.

    Args:
        folds: Number of folds, at most one per cluster.
        seed: Clusters are shuffled by it; without it they are dealt out in sorted order.
    """
    if seed is None:
        names = sorted(set(clusters), key=str)
    else:
        distinct = list(dict.fromkeys(clusters))
        order = np.random.default_rng(seed).permutation(len(distinct))
        names = [distinct[int(i)] for i in order]
    folds = min(folds, len(names))
    fold_of = {name: i % folds for i, name in enumerate(names)}
    return np.array([fold_of[c] for c in clusters])


def cross_fit(
    fit: Callable[[Floats, Floats], Callable[[Floats], Floats]],
    x: Floats,
    y_N: Floats,
    fold_N: npt.NDArray[np.intp],
) -> Floats:
    """P [N] of each row by a fit on the other folds."""
    assert len(np.unique(fold_N)) >= 2, "calibration needs labels of at least two items"
    out = np.empty(len(y_N))
    for k in np.unique(fold_N):
        test = fold_N == k
        out[test] = fit(x[~test], y_N[~test])(x[test])
    return out


class Quality(NamedTuple):
    """Probabilities compared with human labels."""

    accuracy: float
    """On pairs that people do not tie; 1/2 where p is 1/2."""
    ece: float
    log_loss: float
    """In nats, with p clipped to [0.001, 0.999]."""


def quality(p_N: Floats, y_N: Floats) -> Quality:
    """Accuracy, calibration error and log loss of ``p_N`` for labels 1, 0 and 0.5 (tie)."""
    right = np.where(p_N == 0.5, 0.5, np.where(p_N > 0.5, y_N, 1 - y_N))
    untied = y_N != 0.5
    q = np.clip(p_N, 1e-3, 1 - 1e-3)
    return Quality(
        accuracy=float(right[untied].mean()) if untied.any() else math.nan,
        ece=ece(np.maximum(p_N, 1 - p_N), right, bins=10),
        log_loss=float(-(y_N * np.log(q) + (1 - y_N) * np.log(1 - q)).mean()),
    )
