"""Bounds of an error rate from checked labels, and the information gain of a label."""

import math
from bisect import bisect_left

import numpy as np
import numpy.typing as npt
from scipy.special import xlogy

Floats = npt.NDArray[np.float64]


def error_bound(wrong: int, checked: int, total: int, confidence: float = 0.95) -> float:
    """Upper confidence bound of the error rate of ``total`` labels, ``wrong`` of ``checked`` being wrong.

    Exact for ``checked`` labels drawn at random without replacement: the largest number of errors
    with which so few wrong ones have a probability above 1 - confidence.

    >>> error_bound(0, 0, 100)
    1.0
    >>> error_bound(3, 100, 100)
    0.03
    """
    from scipy.stats import hypergeom  # slow to import

    assert 0 <= wrong <= checked <= total, (wrong, checked, total)
    if total == 0:
        return 1.0
    possible = range(wrong, total - (checked - wrong) + 1)

    def refuted(errors: int) -> bool:
        return float(hypergeom.cdf(wrong, total, errors, checked)) <= 1 - confidence

    return possible[max(0, bisect_left(possible, True, key=refuted) - 1)] / total


def checks_needed(wrong: int, checked: int, total: int, target: float) -> int | None:
    """Labels to check in total until the bound is at most ``target``, if the observed error rate
    stays the same; None if checking all of them would not reach it."""
    rate = wrong / checked if checked else 0.0

    def reached(n: int) -> bool:
        return error_bound(min(n, math.ceil(rate * n)), n, total) <= target

    if not reached(total):
        return None
    return checked + bisect_left(range(checked, total), True, key=reached)


def entropy(p: npt.ArrayLike) -> Floats:
    """Entropy of a Bernoulli variable with probability ``p``, nats."""
    q = np.asarray(p, np.float64)
    return -(xlogy(q, q) + xlogy(1 - q, 1 - q))


def bald(probs_KN: npt.ArrayLike) -> Floats:
    """Information gain about the model of a label, nats: H(mean p) - mean H(p) (1112.5745).

    Uncertainty |p - 1/2| would also select pairs that all members agree are a toss-up.

    Args:
        probs_KN: P(first is better) of each of K ensemble members.

    >>> [round(float(x), 6) for x in bald([[0.9, 0.5], [0.1, 0.5]])]
    [0.368064, 0.0]
    """
    p = np.asarray(probs_KN, np.float64)
    return np.maximum(entropy(p.mean(0)) - entropy(p).mean(0), 0.0)
