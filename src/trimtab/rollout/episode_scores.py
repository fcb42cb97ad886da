"""Rewards of episodes: the run's own, plus what their environments gave."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from trimtab.types import Completion, Group, Score


def score_episodes(groups: Sequence[Group], rewards: Callable[[Sequence[Group]], None]) -> None:
    """Fill ``reward`` of all completions: the run's rewards of an episode plus its environment's.

    ``rewards`` read the last completion of each episode that did not fail; its scores and reward are those
    of the whole episode. A failed episode has no reward.
    """
    own: dict[int, list[Score]] = {}
    heads: list[Group] = []
    for group in groups:
        ends = [episode[-1] for episode in group.episodes]
        for c in ends:
            own[id(c)] = [s for name, s in c.scores.items() if "/" not in name]
        played = [c for c in ends if c.status in ("ok", "truncated") and len(c)]
        if played:
            heads.append(replace(group, completions=played))
    rewards(heads)
    for episode in (e for g in groups for e in g.episodes):
        last = episode[-1]
        last.reward = _total(last, own[id(last)])
        for c in episode:
            c.scores, c.reward, c.extra = last.scores, last.reward, {}


def _total(c: Completion, own: Sequence[Score]) -> float | None:
    if c.status in ("failed", "timeout") or not len(c) or not all(s.ok for s in own):
        return None
    total = c.reward
    if total is None and own:
        others = [s for name, s in c.scores.items() if "/" not in name and s not in own]
        total = 0.0 if all(s.status == "masked" for s in others) else None
    return None if total is None else total + math.fsum(s.value or 0.0 for s in own)
