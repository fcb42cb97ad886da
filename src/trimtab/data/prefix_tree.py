"""Which prompts of a pack begin with the same tokens, such as a system prompt with its tools."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.types import Ints

SHORTEST = 16
"""Tokens from which a common beginning is stored once. Each level of the tree costs one more call of
attention, which shorter ones do not pay for."""
SMALLEST_SAVING = 1 / 16
"""Share of the tokens of its groups that a common beginning has to save."""


@dataclass(frozen=True, slots=True)
class Stem:
    """A common beginning of several prompts, or its continuation that fewer of them have in common."""

    start: int
    """Position of its first token."""
    stop: int
    """Position after its last token."""
    parent: int
    """Index of the stem that it continues, -1 for none."""
    first: int
    """Index of a prompt that has its tokens."""


def find_stems(prompts: Sequence[Ints], costs: Sequence[int]) -> tuple[list[Stem], list[int]]:
    """The stems of ``prompts``, parents before children, and the longest stem of each prompt (-1 for none).

    A stem ends before the last token of each of its prompts, so every prompt keeps a token of its own.

    Args:
        prompts: Token ids.
        costs: Tokens that a forward computes for each prompt and its completions.

    >>> stems, of_prompt = find_stems([np.arange(20), np.arange(25), np.arange(5)], [20, 25, 5])
    >>> (stems[0].start, stems[0].stop), of_prompt
    ((0, 19), [0, 0, -1])
    """
    stems: list[Stem] = []
    of_prompt = [-1] * len(prompts)
    # Big-endian bytes sort as the ids do.
    order = sorted(range(len(prompts)), key=lambda i: prompts[i].astype(">i8").tobytes())
    common = [0, *(_common(prompts[a], prompts[b]) for a, b in itertools.pairwise(order))]

    todo = [(0, len(prompts), 0, -1)]
    while todo:
        low, high, depth, parent = todo.pop()
        members = order[low:high]
        limit = depth + SHORTEST - 1
        if len(members) > 1:
            stop = min(common[low + 1 : high])
            saved = (len(members) - 1) * (stop - depth)
            enough = SMALLEST_SAVING * sum(costs[i] for i in members)
            if stop > limit and saved >= enough:
                stems.append(Stem(depth, stop, parent, members[0]))
                depth, parent = stop, len(stems) - 1
                limit = depth + SHORTEST - 1
            limit = max(limit, stop)
        for i in members:
            of_prompt[i] = parent
        cuts = [i for i in range(low + 1, high) if common[i] <= limit]
        if cuts:
            pairs = zip([low, *cuts], [*cuts, high], strict=True)
            todo += [(x, y, depth, parent) for x, y in pairs]
    return stems, of_prompt


def _common(a: Ints, b: Ints) -> int:
    """Number of first tokens that both have; at least one token of each is left."""
    shorter = min(len(a), len(b)) - 1
    differ = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(differ[0]) if len(differ) else shorter
