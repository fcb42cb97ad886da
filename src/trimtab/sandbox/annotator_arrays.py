"""Simulated annotators on arrays: many choices, scores and ranks of ``Annotator`` at once.

Utilities are in nats. They are those of ``Annotator.utility``, computed once per completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from trimtab.sandbox.annotators import Annotator

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def turns(panel: Sequence[Annotator], n: int) -> Ints:
    """Who of the panel gives each of ``n`` labels [n], in turns."""
    return np.arange(n) % len(panel)


@dataclass(frozen=True, slots=True)
class Condition:
    """In what condition annotators are when they give N labels."""

    severity_N: Floats
    """Nats that are subtracted from absolute scores."""
    carelessness_N: Floats
    """Share of coin flips."""

    @classmethod
    def of(cls, panel: Sequence[Annotator], who_N: Ints) -> Condition:
        """Of the members ``who_N``, each of whom has judged what stands before it in the array:
        ``Annotator.after`` of every label."""
        severity, carelessness = np.empty(len(who_N)), np.empty(len(who_N))
        for member, person in enumerate(panel):
            own = who_N == member
            items = np.arange(own.sum())
            severity[own] = person.severity_after(items)
            carelessness[own] = person.carelessness_after(items)
        return cls(severity, carelessness)

    def repeat(self, times: int) -> Condition:
        """Each label's condition ``times`` times: one for every completion of a prompt."""
        return Condition(self.severity_N.repeat(times), self.carelessness_N.repeat(times))


def choose(
    first_N: Floats, second_N: Floats, carelessness_N: Floats, rng: np.random.Generator
) -> Floats:
    """1 where the first of two utilities is preferred, else 0: ``Annotator.choose``."""
    p = (1 - carelessness_N) * expit(first_N - second_N) + carelessness_N / 2
    return (rng.random(len(p)) < p).astype(np.float64)


def rate(
    utility_N: Floats, condition: Condition, scale: float, levels: int, rng: np.random.Generator
) -> Floats:
    """Absolute scores [N] from 1 to ``levels``: ``Annotator.rate``.

    Args:
        scale: Nats between the ends of the scale.
    """
    seen = utility_N - condition.severity_N + rng.gumbel(size=len(utility_N)) - np.euler_gamma
    score = np.clip(np.round(1 + seen * (levels - 1) / scale), 1, levels)
    guess = rng.integers(1, levels + 1, len(score))
    careless = rng.random(len(score)) < condition.carelessness_N
    return np.where(careless, guess, score).astype(np.float64)


def rank(utility_NK: Floats, rng: np.random.Generator) -> Ints:
    """Ranks [N, K], 0 best: ``Annotator.rank`` by utility, without carelessness."""
    noisy = utility_NK + rng.gumbel(size=utility_NK.shape)
    return np.argsort(np.argsort(-noisy, axis=1), axis=1)
