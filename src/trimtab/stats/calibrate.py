"""Calibration of a judge's probabilities with a few human labels."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression
from scipy.special import expit, logit

from trimtab.stats.newton import fit_logistic

Floats = npt.NDArray[np.float64]
EDGE = 1e-4
"""Probabilities are clipped to this distance from 0 and 1."""


@dataclass(frozen=True, slots=True)
class Platt:
    """q = sigmoid(slope * logit(p) + shift) (Platt 1999)."""

    slope: float
    """Below 1: the judge is overconfident."""
    shift: float
    """Nats in favour of the first completion, whatever it is."""

    def __call__(self, p: npt.ArrayLike) -> Floats:
        """Calibrated probabilities."""
        return expit(self.slope * logit(np.clip(p, EDGE, 1 - EDGE)) + self.shift)


@dataclass(frozen=True, slots=True)
class Isotonic:
    """A monotone step function, interpolated linearly (Zadrozny and Elkan 2002)."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __call__(self, p: npt.ArrayLike) -> Floats:
        """Calibrated probabilities."""
        return np.interp(np.asarray(p, np.float64), self.x, self.y)


Calibrator = Platt | Isotonic


def platt(p: npt.ArrayLike, y: npt.ArrayLike) -> Platt:
    """Fit by maximum likelihood with a weak ridge (0.1 b^2 / 2) on both parameters.

    Args:
        p: The judge's probabilities.
        y: Human labels: 1, 0, or 0.5 for a tie.
    """
    z = logit(np.clip(p, EDGE, 1 - EDGE))
    x = np.column_stack([z, np.ones(len(z))])
    y = np.asarray(y, np.float64)
    slope, shift = fit_logistic(x, y, 0.1)[0].tolist()
    return Platt(slope, shift)


def isotonic(p: npt.ArrayLike, y: npt.ArrayLike) -> Isotonic:
    """Least squares over monotone functions; equal probabilities are pooled."""
    p, y = np.asarray(p, np.float64), np.asarray(y, np.float64)
    x, place = np.unique(p, return_inverse=True)
    count = np.bincount(place).astype(np.float64)
    mean = np.bincount(place, weights=y) / count
    level = isotonic_regression(mean, weights=count).x
    return Isotonic(tuple(x.tolist()), tuple(np.asarray(level).tolist()))


def held_out(
    p: npt.ArrayLike,
    y: npt.ArrayLike,
    clusters: Sequence[Hashable],
    how: Literal["platt", "isotonic"] = "platt",
    folds: int = 5,
    seed: int = 0,
) -> Floats:
    """Each probability, calibrated with the labels of the other folds' clusters."""
    p, y = np.asarray(p, np.float64), np.asarray(y, np.float64)
    names = list(dict.fromkeys(clusters))
    folds = min(folds, len(names))
    assert folds >= 2, "calibration needs labels of at least two items"
    order = np.random.default_rng(seed).permutation(len(names))
    fold = {names[int(i)]: place % folds for place, i in enumerate(order)}
    test = np.array([fold[c] for c in clusters])
    out = np.empty_like(p)
    fit = platt if how == "platt" else isotonic
    for k in range(folds):
        out[test == k] = fit(p[test != k], y[test != k])(p[test == k])
    return out
