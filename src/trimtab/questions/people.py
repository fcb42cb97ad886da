"""Simulated people on arrays: the noise of ``sandbox.annotators.Annotator``, with zeros that differ, drift
and tire. Utilities are in nats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.signal import lfilter
from scipy.special import expit

from trimtab.sandbox.annotators import Annotator

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
SCALE = Annotator("anyone").scale
"""Nats per point of gold score."""
PEOPLE = 3


@dataclass(frozen=True, slots=True)
class Panel:
    """Three people who take turns, each label by the next one."""

    trouble: str = "none"
    """ "none"; "gaps": their zeros differ; "drift": each one's zero wanders; "fatigue": they tire."""
    gap: float = 2.0
    """Nats between the zeros of neighbouring people."""
    spread: float = 2.0
    """Nats: the standard deviation of a wandering zero."""
    memory: float = 100.0
    """Labels of a person over which it wanders by about that."""
    most: float = 0.4
    """Carelessness at the end of a session."""
    session: int = 100
    """Labels of a person in a session; rest cures fatigue."""

    @classmethod
    def of(cls, trouble: str, options: dict[str, Any]) -> Panel:
        """The panel of a question's options."""
        drift, fatigue = options["drift"], options["fatigue"]
        return cls(
            trouble, options["gap"], drift["spread"], drift["labels"], fatigue["most"], fatigue["session"]
        )  # fmt: skip

    def zeros(self, person_N: Ints, rng: np.random.Generator) -> Floats:
        """What is subtracted from every absolute score [N], by who gives it and when."""
        if self.trouble == "gaps":
            return np.asarray(self.gap * (person_N - (PEOPLE - 1) / 2), np.float64)
        if self.trouble != "drift":
            return np.zeros(len(person_N))
        zeros = np.empty(len(person_N))
        keep = float(np.exp(-1 / self.memory))
        for person in range(PEOPLE):
            own = person_N == person
            steps = rng.normal(0, self.spread * np.sqrt(1 - keep**2), int(own.sum()))
            if len(steps):
                steps[0] = rng.normal(0, self.spread)
                zeros[own] = lfilter([1.0], [1.0, -keep], steps)
        return zeros

    def carelessness(self, person_N: Ints) -> Floats:
        """Share of judgements that are coin flips [N], rising over each session."""
        if self.trouble != "fatigue":
            return np.zeros(len(person_N))
        careless = np.empty(len(person_N))
        for person in range(PEOPLE):
            own = person_N == person
            careless[own] = self.most * (np.arange(own.sum()) % self.session) / self.session
        return careless


def turns(n: int) -> Ints:
    """Who gives each of ``n`` labels."""
    return np.arange(n) % PEOPLE


def choose(
    first_N: Floats, second_N: Floats, careless_N: Floats, rng: np.random.Generator
) -> Floats:
    """1 where the first of two utilities is preferred, else 0: ``Annotator.choose``."""
    p = (1 - careless_N) * expit(first_N - second_N) + careless_N / 2
    return (rng.random(len(p)) < p).astype(np.float64)


def rate(
    utility_N: Floats, zero_N: Floats, careless_N: Floats, levels: int, rng: np.random.Generator
) -> Floats:
    """Absolute scores from 1 to ``levels``: ``Annotator.rate``."""
    seen = utility_N - zero_N + rng.gumbel(size=len(utility_N)) - np.euler_gamma
    score = np.clip(np.round(1 + seen * (levels - 1) / SCALE), 1, levels)
    guess = rng.integers(1, levels + 1, len(score))
    return np.where(rng.random(len(score)) < careless_N, guess, score).astype(np.float64)


def rank(utility_NK: Floats, rng: np.random.Generator) -> Ints:
    """Ranks [N, K], 0 best: ``Annotator.rank``."""
    noisy = utility_NK + rng.gumbel(size=utility_NK.shape)
    return np.argsort(np.argsort(-noisy, axis=1), axis=1)
