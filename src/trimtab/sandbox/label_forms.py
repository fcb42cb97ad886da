"""The forms in which a simulated annotator judges the completions of one prompt, with their cost."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trimtab.feedback.comparisons import sort_step
from trimtab.sandbox.annotators import Annotator
from trimtab.sandbox.scene import Scene
from trimtab.stats.ranking import ranks_by_worth

Form = Literal["rank", "pairs", "sort", "scores"]
"""One ranking; every pair by itself; the pairs that sorting needs; a score of each completion."""
LEVELS = 7
"""Of absolute scores."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an annotator says about some of a prompt's completions."""

    members: tuple[int, ...]
    """Indices of the completions that were judged."""
    ranks: tuple[int, ...]
    """Of ``members``, 0 best; equal ranks tie."""
    seconds: float
    scores: tuple[int, ...] | None = None
    """Of ``members``, 1 to ``LEVELS``."""
    planted: bool = False
    """Whether it is part of a planted cycle, and so says nothing about the completions."""


def judge_item(
    person: Annotator, scene: Scene, texts: Sequence[str], form: Form, rng: np.random.Generator
) -> list[Verdict]:
    """One annotator's verdicts on the different completions of a prompt.

    The prompt and each completion are read once per item; of "pairs" and "sort", the completions
    are read again for every pair. A ranking of K takes K - 1 decisions, a pair one, K scores K.
    Where a pair's verdict is kept, the first of the two is the one with the lower index.
    """
    everyone = tuple(range(len(texts)))
    if form == "rank":
        ranks = tuple(int(r) for r in person.rank(scene, texts, rng))
        return [Verdict(everyone, ranks, person.seconds(scene, texts, len(texts) - 1))]
    if form == "scores":
        scores = tuple(person.rate(scene, text, rng, LEVELS) for text in texts)
        seconds = person.seconds(scene, texts, len(texts))
        return [Verdict(everyone, ranks_by_worth(scores), seconds, scores)]
    if form == "pairs" and person.cycles and rng.random() < person.cycles:
        return _circle(person, scene, texts, rng)
    if form == "pairs":
        return [_pair(person, scene, texts, i, j, rng) for i, j in itertools.combinations(everyone, 2)]  # fmt: skip
    orders: dict[tuple[int, int], int] = {}
    seed, seconds = int(rng.integers(2**31)), 0.0
    # Of two completions, both a pair and the ranks have two members; the number of verdicts tells.
    while len(step := sort_step(len(texts), orders, seed)) == 2 and len(orders) < _most(texts):
        i, j = step
        verdict = _pair(person, scene, texts, i, j, rng)
        orders[i, j] = verdict.ranks[0] - verdict.ranks[1]
        seconds += verdict.seconds
    return [Verdict(everyone, tuple(step), seconds)]


def _circle(
    person: Annotator, scene: Scene, texts: Sequence[str], rng: np.random.Generator
) -> list[Verdict]:
    """Verdicts on all pairs in which each completion beats the next half of the others, in a random
    order around the circle: with three, all of them are one cycle."""
    size = len(texts)
    place = {int(k): at for at, k in enumerate(rng.permutation(size))}
    verdicts: list[Verdict] = []
    for i, j in itertools.combinations(range(size), 2):
        first = (place[j] - place[i]) % size <= size // 2
        seconds = person.seconds(scene, (texts[i], texts[j]))
        verdicts.append(Verdict((i, j), (int(not first), int(first)), seconds, planted=True))
    return verdicts


def _most(texts: Sequence[str]) -> int:
    return len(texts) * (len(texts) - 1) // 2


def _pair(
    person: Annotator,
    scene: Scene,
    texts: Sequence[str],
    i: int,
    j: int,
    rng: np.random.Generator,
) -> Verdict:
    choice = person.choose(scene, texts[i], texts[j], rng)
    return Verdict((i, j), (choice, 1 - choice), person.seconds(scene, (texts[i], texts[j])))


def margins(
    person: Annotator, scene: Scene, texts: Sequence[str], ranks: Sequence[int], in_nats: bool
) -> list[float]:
    """How much better each completion is than the best of a lower rank, 0 for the last rank.

    Args:
        in_nats: The annotator's own nats, at least 0; else the strength 1 to 4 that it would state.
    """
    values: list[float] = []
    for text, rank in zip(texts, ranks, strict=True):
        below = [r for r in ranks if r > rank]
        if not below:
            values.append(0.0)
            continue
        other = texts[list(ranks).index(min(below))]
        gap = person.gap(scene, text, other)
        values.append(max(0.0, gap) if in_nats else float(person.strength(scene, text, other)))
    return values
