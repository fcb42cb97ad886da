"""Bradley-Terry strengths from comparisons, and cyclic triads (ALGORITHMS section 13)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from trimtab.stats.newton import newton

Floats = npt.NDArray[np.float64]
ELO = 400 / math.log(10)
"""Elo points per nat of log-strength."""


def dense_ranks(values: Sequence[float]) -> tuple[int, ...]:
    """Ranks from 0 without gaps, the lowest value first; equal values tie.

    >>> dense_ranks([3, 1, 3])
    (1, 0, 1)
    """
    levels = sorted(set(values))
    return tuple(levels.index(value) for value in values)


def ranks_by_worth(worths: Sequence[float]) -> tuple[int, ...]:
    """``dense_ranks`` with the highest first."""
    return dense_ranks([-worth for worth in worths])


def connected(wins: npt.ArrayLike) -> bool:
    """Whether the graph of wins is strongly connected; otherwise no finite strengths fit."""
    from scipy.sparse.csgraph import connected_components  # slow to import

    count, _ = connected_components(np.asarray(wins) > 0, directed=True, connection="strong")
    return bool(count == 1)


def bradley_terry(wins: npt.ArrayLike, tol: float = 1e-10) -> Floats:
    """Maximum-likelihood log-strengths [..., M] with mean 0: P(i beats j) = sigmoid(t_i - t_j).

    Where the wins are not strongly connected, half a win each way is added between every two,
    which keeps strengths finite. Newton's method reaches the same maximum as the
    minorise-maximise algorithm (Hunter 2004) in a few steps.

    Args:
        wins: [..., M, M] how often row beat column; a tie is half a win for each.

    >>> [round(float(x), 6) for x in strengths([[0, 3], [1, 0]])]
    [0.75, 0.25]
    """
    w = np.array(wins, np.float64)
    size = w.shape[-1]
    flat = w.reshape(-1, size, size)
    off = 1.0 - np.eye(size)
    flat = flat * off
    loose = [i for i, one in enumerate(flat) if not connected(one)]
    flat[loose] += 0.5 * off
    games = flat + flat.transpose(0, 2, 1)
    won = flat.sum(-1)
    index = np.arange(size)

    def derivatives(t: Floats) -> tuple[Floats, Floats]:
        p = expit(t[:, :, None] - t[:, None, :])
        curve = games * p * (1 - p)
        # A constant added to all strengths changes nothing; 1 / size fixes that direction.
        hessian = 1.0 / size - curve
        hessian[:, index, index] += curve.sum(-1)
        return won - (games * p).sum(-1), hessian

    t = newton(derivatives, np.zeros((len(flat), size)), longest=1.0, tol=tol, steps=200)
    t -= t.mean(-1, keepdims=True)
    return t.reshape(w.shape[:-1])


def strengths(wins: npt.ArrayLike) -> Floats:
    """Bradley-Terry strengths that sum to 1."""
    s = np.exp(bradley_terry(wins))
    return s / s.sum(-1, keepdims=True)


def elo(log_strengths: npt.ArrayLike, anchor: int | None = None, at: float = 1000.0) -> Floats:
    """Elo ratings, shifted so that ``anchor``, or the mean of all, is ``at``."""
    points = ELO * np.asarray(log_strengths, np.float64)
    zero = points.mean(-1, keepdims=True) if anchor is None else points[..., anchor : anchor + 1]
    return points - zero + at


@dataclass(frozen=True, slots=True)
class Triads:
    """Cyclic triads of a set of comparisons: a beats b, b beats c, c beats a."""

    cycles: tuple[tuple[int, int, int], ...]
    """Each one once, from its lowest member, in the order of who beats whom."""
    triples: int
    """Triples whose three pairs are all decided."""
    zeta: float | None
    """Kendall's consistency: 1 without a cycle, 0 with the largest possible number. None unless
    the tournament is complete."""

    @property
    def rate(self) -> float:
        """Cycles over triples: 0.25 for random choices; NaN without triples."""
        return len(self.cycles) / self.triples if self.triples else math.nan


def triads(wins: npt.ArrayLike) -> Triads:
    """Cyclic triads of [M, M] wins: i beats j if it won more often; equal counts are undecided.

    In a complete tournament their number is C(n,3) - sum_i C(a_i,2), a_i the wins of i (Kendall
    and Babington Smith 1940).
    """
    w = np.asarray(wins, np.float64)
    beats = w > w.T
    decided = beats | beats.T
    size = len(w)
    cycles: list[tuple[int, int, int]] = []
    for a, b in zip(*np.nonzero(beats), strict=True):
        # c > a makes a the lowest, so that each is met once.
        cycles += [
            (int(a), int(b), int(c)) for c in np.nonzero(beats[b] & beats[:, a])[0] if a < min(b, c)
        ]
    k = decided.astype(np.float64)
    triples = round(float(np.trace(k @ k @ k)) / 6)
    zeta: float | None = None
    if size >= 3 and triples == math.comb(size, 3):
        most = (size**3 - size) if size % 2 else (size**3 - 4 * size)
        zeta = 1 - 24 * len(cycles) / most
    return Triads(tuple(cycles), triples, zeta)
