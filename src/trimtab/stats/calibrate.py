"""From a judge's probabilities to ones that can be believed, by a few labels of people."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression
from scipy.special import expit, logit

from trimtab.stats.logistic import newton

Floats = npt.NDArray[np.float64]
EDGE = 1e-4
"""Probabilities nearer to 0 or 1 than this are read as this far."""


@dataclass(frozen=True, slots=True)
class Platt:
    """q = s(slope * logit(p) + shift) (Platt 1999)."""

    slope: float
    """Below 1: the judge is too sure."""
    shift: float
    """Nats for the first answer, whatever it is."""

    def __call__(self, p: npt.ArrayLike) -> Floats:
        """Calibrated probabilities."""
        return expit(self.slope * logit(np.clip(p, EDGE, 1 - EDGE)) + self.shift)


@dataclass(frozen=True, slots=True)
class Isotonic:
    """A rising step function, joined by lines (Zadrozny and Elkan 2002)."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __call__(self, p: npt.ArrayLike) -> Floats:
        """Calibrated probabilities."""
        return np.interp(np.asarray(p, np.float64), self.x, self.y)


Calibrator = Platt | Isotonic


def platt(p: npt.ArrayLike, y: npt.ArrayLike) -> Platt:
    """Fit by maximum likelihood with a weak hold (a tenth of b^2 / 2) on both numbers.

    Args:
        p: The judge's probabilities.
        y: What people said: 1, 0, or a half for a tie.
    """
    z = logit(np.clip(p, EDGE, 1 - EDGE))
    x = np.column_stack([z, np.ones(len(z))])
    y = np.asarray(y, np.float64)
    found = newton(x, y, np.ones((1, len(y))), np.full(2, 0.1))[0]
    return Platt(float(found[0]), float(found[1]))


def isotonic(p: npt.ArrayLike, y: npt.ArrayLike) -> Isotonic:
    """Least squares over rising functions; equal probabilities are one point."""
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
    """Each probability as calibrated by the labels of the other folds' clusters."""
    p, y = np.asarray(p, np.float64), np.asarray(y, np.float64)
    names = list(dict.fromkeys(clusters))
    folds = min(folds, len(names))
    assert folds >= 2, "calibration needs labels of two items"
    order = np.random.default_rng(seed).permutation(len(names))
    fold = {names[int(i)]: place % folds for place, i in enumerate(order)}
    mine = np.array([fold[c] for c in clusters])
    out = np.empty_like(p)
    fit = platt if how == "platt" else isotonic
    for k in range(folds):
        out[mine == k] = fit(p[mine != k], y[mine != k])(p[mine == k])
    return out
