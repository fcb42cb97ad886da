"""Unbiased estimators of best-of-n rewards and of pass@k."""

import math
from collections.abc import Sequence

from trimtab.errors import DataError


def pick(scores: Sequence[float]) -> int:
    """Index of the highest score; the lowest index among equal ones.

    >>> pick([1.0, 3.0, 3.0])
    1
    """
    return max(range(len(scores)), key=lambda i: (scores[i], -i))


def best_of_n(scores: Sequence[float], n: int, values: Sequence[float] | None = None) -> float:
    """Unbiased expected maximum of n of N >= n scores: sum_i C(i-1,n-1)/C(N,n) R_(i), ascending.

    Args:
        scores: Of N completions of one prompt.
        values: Another score of each completion. With proxy ``scores`` and gold ``values`` the
            result is the expected gold score of the completion with the best proxy score. The
            scores themselves by default.

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
    # The lowest index wins among equal scores, so it is sorted last.
    order = sorted(range(len(scores)), key=lambda i: (scores[i], -i))
    return sum(math.comb(at, n - 1) / total * worth[i] for at, i in enumerate(order))


def kl_bound(n: int) -> float:
    """log n - (n-1)/n nats: upper bound of KL(best-of-n || base) (2401.01879).

    It is exact only where no two completions have the same score.
    """
    assert n >= 1, n
    return math.log(n) - (n - 1) / n


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n-c,k)/C(n,k): unbiased probability that one of k samples is correct (2107.03374).

    The plug-in estimate 1-(1-c/n)^k is biased.

    Args:
        n: Samples drawn for the problem.
        c: Correct ones among them.

    Raises:
        DataError: n < k, where the estimate is undefined.

    >>> round(pass_at_k(10, 3, 5), 6)
    0.916667
    """
    assert 0 <= c <= n and k >= 1, (n, c, k)
    if n < k:
        raise DataError(f"pass@{k} is undefined for {n} samples per problem; draw {k} or lower k")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)
