"""Agreement of annotators beyond chance, and the accuracy of each (ALGORITHMS section 13)."""

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
        table: [..., C, C] counts: rows are the first annotator's labels, columns the second's.
        weights: Cost of a disagreement by the distance of the classes; None: all cost the same.

    Returns:
        [...]; NaN where both annotators only ever used one and the same class.

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
    """Share of equal labels among ordered pairs of labels of one unit, from [..., C, C]."""
    o = np.asarray(coincidences, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.trace(o, axis1=-2, axis2=-1) / o.sum((-2, -1))


def fleiss_parts(counts_NC: npt.ArrayLike) -> Floats:
    """Terms of each unit [N, C + 2], whose sums ``fleiss_of`` takes (Fleiss 1971).

    Args:
        counts_NC: Number of labels of class c of unit i.

    Raises:
        AssertionError: units have different numbers of labels, or fewer than two.
    """
    n = np.asarray(counts_NC, np.float64)
    m = n.sum(1)
    assert len(m) == 0 or (m == m[0]).all(), (
        "Fleiss' kappa needs the same number of labels per unit"
    )
    assert (m >= 2).all(), "Fleiss' kappa needs at least two labels per unit"
    agree = ((n**2).sum(1) - m) / (m * (m - 1))
    return np.column_stack([agree, np.ones(len(n)), n])


def fleiss_of(sums: Floats) -> Floats:
    """Fleiss' kappa from sums [..., C + 2] of ``fleiss_parts``; NaN where only one class occurs.

    >>> round(float(fleiss_of(fleiss_parts([[3, 0], [2, 1], [0, 3], [1, 2]]).sum(0))), 6)
    0.333333
    """
    agree = sums[..., 0] / sums[..., 1]
    share = sums[..., 2:] / sums[..., 2:].sum(-1, keepdims=True)
    chance = (share**2).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(chance < 1, (agree - chance) / (1 - chance), np.nan)


def coincidences(counts_NC: npt.ArrayLike) -> Floats:
    """Ordered pairs of labels of each unit [N, C, C], weighted 1/(m - 1) (Krippendorff 2011).

    Only pairs of different annotators count; units with fewer than two labels add nothing.
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
        level: Distance of two classes: 0 or 1, by the ranks between them, or squared difference.
        values: [C] numbers of the classes, for "interval"; 0, 1, 2... by default.

    Returns:
        [...]; NaN where only one class occurs.
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
    """Krippendorff's alpha of units with any number of labels each.

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
    """P(annotator r says k | truth is c)."""
    log_likelihood: tuple[float, ...]
    """Of the data and the smoothing after each EM iteration; it never falls."""

    @property
    def accuracy(self) -> Floats:
        """P(the annotator's label is the true class), one per annotator."""
        return np.einsum("c,rcc->r", self.prior_C, self.confusion_RCC)


def dawid_skene(
    unit_N: npt.NDArray[np.intp],
    rater_N: npt.NDArray[np.intp],
    label_N: npt.NDArray[np.intp],
    classes: int,
    weight_U: Floats | None = None,
    smoothing: float = 1.0,
    steps: int = 200,
    tol: float = 1e-7,
) -> DawidSkene:
    """Fit the model of Dawid and Skene by EM, starting from the majority vote.

    Args:
        unit_N: Unit (0 to U - 1) of each of the N labels.
        rater_N: Its annotator (0 to R - 1).
        weight_U: How often each unit counts, for the bootstrap.
        smoothing: Pseudo-labels added to each row of a confusion matrix, most of them on the
            diagonal, so that few labels do not make an annotator look perfect or hopeless.
        tol: Stops when the relative gain in log-likelihood is below.
    """
    units, raters = int(unit_N.max()) + 1, int(rater_N.max()) + 1
    weight = np.ones(units) if weight_U is None else weight_U
    votes = np.bincount(unit_N * classes + label_N, minlength=units * classes).reshape(units, -1)
    cell = rater_N * classes + label_N
    posterior = votes / np.maximum(votes.sum(1, keepdims=True), 1e-300)
    diagonal = np.eye(classes)
    extra = smoothing * (0.5 * diagonal + 0.5 / classes)
    history: list[float] = []
    prior, confusion = np.full(classes, 1 / classes), np.zeros((raters, classes, classes))
    for _ in range(steps):
        mass = posterior * weight[:, None]
        prior = (mass.sum(0) + smoothing / classes) / (mass.sum() + smoothing)
        for c in range(classes):
            sums = np.bincount(cell, weights=mass[unit_N, c], minlength=raters * classes)
            confusion[:, c] = sums.reshape(raters, classes) + extra[c]
        confusion /= confusion.sum(2, keepdims=True)
        logs = np.empty((units, classes))
        for c in range(classes):
            logp = np.log(confusion[rater_N, c, label_N])
            logs[:, c] = np.log(prior[c]) + np.bincount(unit_N, weights=logp, minlength=units)
        top = logs.max(1, keepdims=True)
        evidence = top[:, 0] + np.log(np.exp(logs - top).sum(1))
        smooth = float((extra * np.log(confusion)).sum() + smoothing * np.log(prior).mean())
        history.append(float(weight @ evidence) + smooth)
        posterior = np.exp(logs - evidence[:, None])
        if len(history) > 1 and history[-1] - history[-2] <= tol * abs(history[-1]):
            break
    return DawidSkene(posterior, prior, confusion, tuple(history))
