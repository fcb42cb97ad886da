"""How far annotators agree beyond chance, and how good each of them is (ALGORITHMS section 13)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Level = Literal["nominal", "ordinal", "interval"]


def cohen_kappa(
    table: npt.ArrayLike, weights: Literal["linear", "quadratic"] | None = None
) -> Floats:
    """kappa = (p_o - p_e) / (1 - p_e) of two annotators (Cohen 1960; weighted, Cohen 1968).

    Args:
        table: [..., C, C] counts: rows what the first said, columns the second.
        weights: How much further apart classes count as more wrong; None: all alike.

    Returns:
        [...]; NaN where both always said one and the same class, which says nothing.

    >>> round(float(cohen_kappa([[20, 5], [10, 15]])), 9)
    0.4
    """
    t = np.asarray(table, np.float64)
    size = t.shape[-1]
    far = np.abs(np.subtract.outer(np.arange(size), np.arange(size))).astype(np.float64)
    cost = {None: far > 0, "linear": far, "quadratic": far**2}[weights]
    total = t.sum((-2, -1))
    seen = (t * cost).sum((-2, -1)) * total
    chance = ((t.sum(-1)[..., :, None] * t.sum(-2)[..., None, :]) * cost).sum((-2, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(chance > 0, 1 - seen / chance, np.nan)


def percent_agreement(coincidences: npt.ArrayLike) -> Floats:
    """Share of ordered pairs of labels of one unit that are equal, from [..., C, C]."""
    o = np.asarray(coincidences, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.trace(o, axis1=-2, axis2=-1) / o.sum((-2, -1))


def fleiss_parts(counts_NC: npt.ArrayLike) -> Floats:
    """What each unit adds to the sums of ``fleiss_of``: [N, C + 2].

    Raises:
        AssertionError: units have different numbers of labels, or fewer than two.
    """
    n = np.asarray(counts_NC, np.float64)
    m = n.sum(1)
    assert len(m) == 0 or (m == m[0]).all(), "Fleiss' kappa wants equally many labels a unit"
    assert (m >= 2).all(), "a unit needs two labels"
    agree = ((n**2).sum(1) - m) / (m * (m - 1))
    return np.column_stack([agree, np.ones(len(n)), n])


def fleiss_of(sums: Floats) -> Floats:
    """Fleiss' kappa of sums [..., C + 2] of ``fleiss_parts``."""
    agree = sums[..., 0] / sums[..., 1]
    share = sums[..., 2:] / sums[..., 2:].sum(-1, keepdims=True)
    chance = (share**2).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(chance < 1, (agree - chance) / (1 - chance), np.nan)


def fleiss_kappa(counts_NC: npt.ArrayLike) -> float:
    """P_i = (sum_c n_ic^2 - n) / (n (n - 1)), P_e = sum_c p_c^2 (Fleiss 1971).

    Args:
        counts_NC: How many said class c of unit i; equally many labels a unit.

    >>> round(fleiss_kappa([[3, 0], [2, 1], [0, 3], [1, 2]]), 6)
    0.333333
    """
    return float(fleiss_of(fleiss_parts(counts_NC).sum(0)))


def coincidences(counts_NC: npt.ArrayLike) -> Floats:
    """Ordered pairs of labels of each unit [N, C, C], weighted 1/(m - 1) (Krippendorff 2011).

    Units with fewer than two labels add nothing. Pairs of different annotators alone are counted.
    """
    n = np.asarray(counts_NC, np.float64)
    m = n.sum(1)
    pairs = n[:, :, None] * n[:, None, :]
    index = np.arange(n.shape[1])
    pairs[:, index, index] -= n
    return pairs / np.where(m >= 2, m - 1, np.inf)[:, None, None]


def alpha_of(
    o: npt.ArrayLike, level: Level = "nominal", values: npt.ArrayLike | None = None
) -> Floats:
    """Krippendorff's alpha = 1 - D_o / D_e of summed coincidences [..., C, C].

    Args:
        o: See ``coincidences``.
        level: Difference of two classes: unequal, by ranks between them, or squared.
        values: [C] numbers of the classes, for "interval"; 0, 1, 2… if not given.

    Returns:
        [...]; NaN where only one class was ever said.
    """
    pairs = np.asarray(o, np.float64)
    n_c = pairs.sum(-1)
    total = n_c.sum(-1)
    size = pairs.shape[-1]
    if level == "nominal":
        apart = np.broadcast_to(1.0 - np.eye(size), pairs.shape)
    elif level == "interval":
        v = np.arange(size) if values is None else np.asarray(values, np.float64)
        apart = np.broadcast_to(np.subtract.outer(v, v) ** 2, pairs.shape)
    else:
        middle = np.cumsum(n_c, -1) - n_c / 2
        apart = (middle[..., :, None] - middle[..., None, :]) ** 2
    seen = (pairs * apart).sum((-2, -1))
    chance = (n_c[..., :, None] * n_c[..., None, :] * apart).sum((-2, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(chance > 0, 1 - (total - 1) * seen / chance, np.nan)


def krippendorff_alpha(
    counts_NC: npt.ArrayLike, level: Level = "nominal", values: npt.ArrayLike | None = None
) -> float:
    """Alpha of units with any number of labels each; missing ones are simply not there.

    >>> round(krippendorff_alpha([[3, 0], [2, 1], [0, 3], [1, 2]]), 6)
    0.388889
    """
    return float(alpha_of(coincidences(counts_NC).sum(0), level, values))


@dataclass(frozen=True, slots=True)
class DawidSkene:
    """Annotators as confusion matrices, true classes as probabilities (Dawid and Skene 1979)."""

    posterior_UC: Floats
    """P(class) of each unit."""
    prior_C: Floats
    confusion_RCC: Floats
    """P(annotator says k | truth is c)."""
    log_likelihood: tuple[float, ...]
    """Of the data and the smoothing, after each step: never falls."""

    @property
    def accuracy(self) -> Floats:
        """P(annotator says the true class)."""
        return np.einsum("c,rcc->r", self.prior_C, self.confusion_RCC)


def dawid_skene(
    unit_N: npt.NDArray[np.intp],
    rater_N: npt.NDArray[np.intp],
    said_N: npt.NDArray[np.intp],
    classes: int,
    weight_U: Floats | None = None,
    smoothing: float = 1.0,
    steps: int = 200,
    tol: float = 1e-7,
) -> DawidSkene:
    """EM from the majority vote.

    Args:
        unit_N: Which unit (0 to U - 1) each of the N labels is of.
        rater_N: Whose it is (0 to R - 1).
        said_N: The class.
        classes: C.
        weight_U: How often each unit counts, for the bootstrap.
        smoothing: Labels spread over each row of a confusion matrix, most of them on its
            diagonal, so that an annotator of few labels is neither perfect nor hopeless.
        steps: At most.
        tol: Stops when the log-likelihood grows by less than this share.
    """
    units, raters = int(unit_N.max()) + 1, int(rater_N.max()) + 1
    weight = np.ones(units) if weight_U is None else weight_U
    votes = np.bincount(unit_N * classes + said_N, minlength=units * classes).reshape(units, -1)
    cell = rater_N * classes + said_N
    posterior = votes / np.maximum(votes.sum(1, keepdims=True), 1e-300)
    diagonal = np.eye(classes)
    extra = smoothing * (0.5 * diagonal + 0.5 / classes)
    history: list[float] = []
    prior, confusion = np.full(classes, 1 / classes), np.zeros((raters, classes, classes))
    for _ in range(steps):
        mass = posterior * weight[:, None]
        prior = (mass.sum(0) + smoothing / classes) / (mass.sum() + smoothing)
        for c in range(classes):
            told = np.bincount(cell, weights=mass[unit_N, c], minlength=raters * classes)
            confusion[:, c] = told.reshape(raters, classes) + extra[c]
        confusion /= confusion.sum(2, keepdims=True)
        logs = np.empty((units, classes))
        for c in range(classes):
            told = np.log(confusion[rater_N, c, said_N])
            logs[:, c] = np.log(prior[c]) + np.bincount(unit_N, weights=told, minlength=units)
        top = logs.max(1, keepdims=True)
        evidence = top[:, 0] + np.log(np.exp(logs - top).sum(1))
        smooth = float((extra * np.log(confusion)).sum() + smoothing * np.log(prior).mean())
        history.append(float(weight @ evidence) + smooth)
        posterior = np.exp(logs - evidence[:, None])
        if len(history) > 1 and history[-1] - history[-2] <= tol * abs(history[-1]):
            break
    return DawidSkene(posterior, prior, confusion, tuple(history))
