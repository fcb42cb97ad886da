"""Which question next: orders, sides, and sorting by comparisons. Pure functions of seeds."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Mapping

from trimtab.feedback.item_rows import Entry
from trimtab.feedback.judgement import Item
from trimtab.label.label_config import Plan

Said = Mapping[tuple[int, int], int]
"""Verdicts by pair (i, j), i < j: -1 when i is better, 1 when j is, 0 for a tie."""


def draw(*parts: object) -> int:
    """A number in [0, 2^48) that depends on ``parts`` alone."""
    text = "\0".join(str(p) for p in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def share(*parts: object) -> float:
    """A number in [0, 1) that depends on ``parts`` alone."""
    return draw(*parts) / 2**48


def sides(seed: int, k: int) -> tuple[int, ...]:
    """[k] answers in the order in which they are shown: ``Judgement.shown`` of this seed."""
    order = list(range(k))
    random.Random(seed).shuffle(order)
    return tuple(order)


def pair(item: Item, i: int, j: int) -> Item:
    """Answers ``i`` and ``j`` of an item, i < j, as an item; ``extra`` says where they are from."""
    at = (i, j)
    return Item(
        id=f"{item.id}:{i}-{j}",
        prompt=item.prompt,
        answers=tuple(item.answers[x] for x in at),
        models=None if item.models is None else tuple(item.models[x] for x in at),
        steps=None if item.steps is None else tuple(item.steps[x] for x in at),
        extra={**item.extra, "of": item.id, "pair": [i, j]},
    )


def expand(entry: Entry, plan: Plan) -> list[Entry]:
    """What is asked of an entry: itself, or with ``ask: pairs`` every pair of its answers."""
    item, score = entry.item, entry.score
    k = len(item.answers)
    flat = score if isinstance(score, float | int) else max(itertools.chain(*score), default=0.0)
    if plan.ask != "pairs" or k <= 2:
        return [Entry(item, entry.gold, flat)]
    made: list[Entry] = []
    for i, j in itertools.combinations(range(k), 2):
        worth = score if isinstance(score, float | int) else score[i][j]
        gold = entry.gold
        known = None if gold is None else (int(gold[i] > gold[j]), int(gold[j] > gold[i]))
        made.append(Entry(pair(item, i, j), known, worth))
    return made


def place_in_order(entry: Entry, index: int, plan: Plan) -> tuple[float, float]:
    """Sort key: lower is asked first, the second number among equals."""
    if plan.order == "given":
        return 0.0, float(index)
    first = (
        -float(entry.score)
        if plan.order == "active" and isinstance(entry.score, float | int)
        else 0.0
    )
    return first, share(plan.seed, "order", entry.item.id)


def sort_step(k: int, said: Said, seed: int) -> tuple[int, int] | tuple[int, ...]:
    """The next pair that sorting ``k`` answers needs, or when nothing is left to ask, their ranks.

    Binary insertion: sum of ceil(log2(n)) for n = 2 to k comparisons at most (Knuth 5.3.1), 21
    instead of 36 for nine answers; ties need fewer. Stateless, so a verdict taken back is asked
    again and nothing else is.

    Returns:
        (i, j) with i < j while ``said`` leaves the order open; then ranks [k].

    >>> sort_step(3, {(0, 1): -1, (0, 2): -1, (1, 2): 0}, seed=0)
    (0, 1, 1)
    """
    groups: list[list[int]] = []
    for x in sides(seed, k):
        low, high = 0, len(groups)
        while low < high:
            middle = (low + high) // 2
            y = groups[middle][0]
            key = (min(x, y), max(x, y))
            if key not in said:
                return key
            better = said[key] if x < y else -said[key]
            if better == 0:
                groups[middle].append(x)
                break
            low, high = (low, middle) if better < 0 else (middle + 1, high)
        else:
            groups.insert(low, [x])
    ranks = [0] * k
    for place, group in enumerate(groups):
        for x in group:
            ranks[x] = place
    return tuple(ranks)


def bound(k: int) -> int:
    """Comparisons that ``sort_step`` asks at most.

    >>> [bound(k) for k in (2, 3, 4, 9)]
    [1, 3, 5, 21]
    """
    return sum((n - 1).bit_length() for n in range(2, k + 1))
