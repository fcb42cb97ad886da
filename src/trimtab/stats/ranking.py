"""Strengths from comparisons, and contradictions among them (ALGORITHMS section 13)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse.csgraph import connected_components

Floats = npt.NDArray[np.float64]
ELO = 400 / math.log(10)
"""Elo points a nat of log-strength."""


def connected(wins: npt.ArrayLike) -> bool:
    """Whether everyone beats everyone through others, without which no finite strengths fit."""
    count, _ = connected_components(np.asarray(wins) > 0, directed=True, connection="strong")
    return bool(count == 1)


def bradley_terry(wins: npt.ArrayLike, tol: float = 1e-10) -> Floats:
    """Log-strengths [..., M], mean 0, of greatest likelihood: P(i beats j) = s(t_i - t_j).

    Where the wins are not strongly connected, half a win each way is added between any two, which
    keeps strengths finite. Newton's method; the maximum is the same that minorise-maximise finds
    (Hunter 2004), and is reached in a few steps.

    Args:
        wins: [..., M, M] how often row beat column; a tie is half a win to each.

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
    t = np.zeros((len(flat), size))
    for _ in range(200):
        p = 1 / (1 + np.exp(t[:, None, :] - t[:, :, None]))
        slope = won - (games * p).sum(-1)
        curve = games * p * (1 - p)
        hessian = -curve
        index = np.arange(size)
        hessian[:, index, index] += curve.sum(-1)
        # The constant is free: pinning its direction leaves the rest as it is.
        hessian += 1.0 / size
        step = np.linalg.solve(hessian, slope[..., None])[..., 0]
        # A long step from afar may overshoot: at most one nat at a time.
        long = np.maximum(np.abs(step).max(-1, keepdims=True), 1.0)
        t = t + step / long
        t -= t.mean(-1, keepdims=True)
        if np.abs(step).max() < tol:
            break
    return t.reshape(w.shape[:-1])


def strengths(wins: npt.ArrayLike) -> Floats:
    """Bradley-Terry strengths that sum to 1."""
    s = np.exp(bradley_terry(wins))
    return s / s.sum(-1, keepdims=True)


def elo(log_strengths: npt.ArrayLike, anchor: int | None = None, at: float = 1000.0) -> Floats:
    """Elo ratings: ``anchor``, or the mean of all, stands at ``at``."""
    points = ELO * np.asarray(log_strengths, np.float64)
    zero = points.mean(-1, keepdims=True) if anchor is None else points[..., anchor : anchor + 1]
    return points - zero + at


@dataclass(frozen=True, slots=True)
class Triads:
    """Contradictions of a set of comparisons: a over b, b over c, c over a."""

    cycles: tuple[tuple[int, int, int], ...]
    """Each once, from its lowest member, in the order of who beats whom."""
    triples: int
    """Triples whose three pairs are all decided."""
    zeta: float | None
    """Kendall's consistency: 1 without a cycle, 0 with as many as can be. Complete tournaments
    alone; else None."""

    @property
    def rate(self) -> float:
        """Cycles over triples: a quarter if all are coins; NaN without triples."""
        return len(self.cycles) / self.triples if self.triples else math.nan


def triads(wins: npt.ArrayLike) -> Triads:
    """Cyclic triads of [M, M] wins; who won more of a pair beats the other, equal is undecided.

    In a complete tournament their number is C(n,3) - sum_i C(a_i,2), a_i the wins of i (Kendall
    and Babington Smith 1940).
    """
    w = np.asarray(wins, np.float64)
    beats = w > w.T
    known = beats | beats.T
    size = len(w)
    cycles: list[tuple[int, int, int]] = []
    for a, b in zip(*np.nonzero(beats), strict=True):
        # c > a makes a the lowest, so that each is met once.
        cycles += [
            (int(a), int(b), int(c)) for c in np.nonzero(beats[b] & beats[:, a])[0] if a < min(b, c)
        ]
    k = known.astype(np.float64)
    triples = round(float(np.trace(k @ k @ k)) / 6)
    zeta: float | None = None
    if size >= 3 and triples == math.comb(size, 3):
        most = (size**3 - size) if size % 2 else (size**3 - 4 * size)
        zeta = 1 - 24 * len(cycles) / most
    return Triads(tuple(cycles), triples, zeta)
