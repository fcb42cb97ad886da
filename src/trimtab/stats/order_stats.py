"""Estimators of picking the best of n samples, and of passing with one of k."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from trimtab.errors import DataError


def pick(scores: Sequence[float]) -> int:
    """Index of the highest score; of equal ones the lowest index.

    >>> pick([1.0, 3.0, 3.0])
    1
    """
    return max(range(len(scores)), key=lambda i: (scores[i], -i))


def best_of_n(scores: Sequence[float], n: int, values: Sequence[float] | None = None) -> float:
    """Unbiased expected maximum of n of N >= n scores: sum_i C(i-1,n-1)/C(N,n) R_(i), ascending.

    Args:
        scores: Of N answers to one prompt.
        n: How many are drawn.
        values: What the pick is worth by another measure, one for each score: picking by a proxy
            score, this gives the expected gold. The scores themselves when not given.

    Raises:
        DataError: fewer scores than n.

    >>> round(best_of_n([1, 2, 3, 4], 2), 6)
    3.333333
    >>> best_of_n([1, 2], 2, values=[0.0, 5.0])
    5.0
    """
    if not 1 <= n <= len(scores):
        raise DataError(f"best of {n} needs n >= 1 and at least n scores, got {len(scores)}")
    total = math.comb(len(scores), n)
    worth = scores if values is None else values
    # Of equal scores the lowest index is picked, so it stands last.
    order = sorted(range(len(scores)), key=lambda i: (scores[i], -i))
    return sum(math.comb(at, n - 1) / total * worth[i] for at, i in enumerate(order))


def kl_bound(n: int) -> float:
    """log n - (n-1)/n nats: the most that best-of-n moves from its base (2401.01879).

    Exact only where no two answers score the same.
    """
    assert n >= 1, n
    return math.log(n) - (n - 1) / n


def kl_with_ties(masses: Sequence[float], n: int) -> float:
    """KL(best-of-n || base), nats, where a score takes values with these probabilities, ascending.

    >>> round(kl_with_ties([0.5, 0.5], 4), 5)
    0.45936
    """
    p = np.asarray(masses, np.float64)
    assert n >= 1 and (p >= 0).all() and abs(float(p.sum()) - 1.0) < 1e-9, masses
    below = np.concatenate([[0.0], np.cumsum(p)])
    q = np.diff(below**n)
    on = q > 0
    return float((q[on] * np.log(q[on] / p[on])).sum())


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n-c,k)/C(n,k): unbiased chance that one of k samples is right (2107.03374).

    ``c`` of the ``n`` samples drawn were right. 1-(1-c/n)^k would be biased.

    Raises:
        DataError: n < k, where it is undefined.

    >>> round(pass_at_k(10, 3, 5), 6)
    0.916667
    """
    assert 0 <= c <= n and k >= 1, (n, c, k)
    if n < k:
        raise DataError(f"pass@{k} is undefined for {n} samples a problem; draw {k} or lower k")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)
