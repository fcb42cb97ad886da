"""Shaping: from the weighted sum of the parts to the reward that is trained on (ALGORITHMS section 12).

The order is fixed: running whitening, clip, additive penalties. No penalty multiplies: a factor
below 1 raises a negative reward, and so would reward completions that are cut off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import regex
from pydantic import Field, field_validator, model_validator

from trimtab.config import Config
from trimtab.rewards.rules import PATTERN_S, check_pattern
from trimtab.stats.running import RunningFit
from trimtab.types import Completion, Group, Ints, Score


class Repetition(Config):
    """-weight * (1 - distinct n-grams / all n-grams) of the completion's tokens."""

    weight: float = Field(default=1.0, gt=0.0)
    n: int = Field(default=3, gt=0)

    def __call__(self, c: Completion, group: Group) -> float:
        """The penalty; 0 if the completion has fewer than ``n`` tokens."""
        grams = n_grams(c.ids[c.mask], self.n)
        return -self.weight * (1.0 - len(set(grams)) / len(grams)) if grams else 0.0


class Copying(Config):
    """-weight * max(0, share of the completion's n-grams that occur in the prompt - threshold)."""

    weight: float = Field(default=1.0, gt=0.0)
    n: int = Field(default=3, gt=0)
    threshold: float = Field(default=0.5, ge=0.0, le=1.0)

    def __call__(self, c: Completion, group: Group) -> float:
        """The penalty; 0 if the completion has fewer than ``n`` tokens."""
        grams = n_grams(c.ids[c.mask], self.n)
        if not grams:
            return 0.0
        there = set(n_grams(group.prompt, self.n))
        share = sum(g in there for g in grams) / len(grams)
        return -self.weight * max(0.0, share - self.threshold)


class Length(Config):
    """-weight * max(0, tokens / target - 1)."""

    weight: float = Field(default=1.0, gt=0.0)
    target: int = Field(gt=0)
    """Number of tokens without a penalty."""

    def __call__(self, c: Completion, group: Group) -> float:
        """The penalty; 0 up to the target."""
        return -self.weight * max(0.0, c.trained / self.target - 1.0)


class Overlong(Config):
    """DAPO's soft overlong penalty (2503.14476): 0 at max_length - cache tokens, -weight at max_length."""

    weight: float = Field(default=1.0, gt=0.0)
    max_length: int = Field(gt=0)
    """Number of tokens from which the penalty is -weight."""
    cache: int = Field(gt=0)
    """Number of tokens before ``max_length`` over which the penalty grows."""

    @model_validator(mode="after")
    def _fits(self) -> Overlong:
        if self.cache > self.max_length:
            raise ValueError(f"cache {self.cache} is above max_length {self.max_length}")
        return self

    def __call__(self, c: Completion, group: Group) -> float:
        """The penalty, between -weight and 0."""
        over = c.trained - (self.max_length - self.cache)
        return -self.weight * min(1.0, max(0.0, over / self.cache))


class Truncated(Config):
    """-weight if the completion was cut at the token limit, or the episode at one of its limits."""

    weight: float = Field(default=1.0, gt=0.0)

    def __call__(self, c: Completion, group: Group) -> float:
        """The penalty: -weight or 0."""
        return -self.weight if c.truncated else 0.0


class Format(Config):
    """``bonus`` if the pattern is found in the completion, else -``penalty``.

    Where the chat template writes the start of the completion into the prompt (``<think>``), it counts
    as a part of the completion."""

    pattern: str
    """In the syntax of the ``regex`` package: ^ and $ anchor it, (?s) lets . match newlines."""
    bonus: float = Field(default=1.0, ge=0.0)
    penalty: float = Field(default=0.0, ge=0.0)

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        return check_pattern(value)

    def __call__(self, c: Completion, group: Group) -> float:
        """The bonus or the penalty; raises TimeoutError if the search takes too long."""
        match = regex.search(
            self.pattern, group.prefill + c.text, timeout=PATTERN_S, concurrent=True
        )
        return self.bonus if match else -self.penalty


class ShapeSpec(Config):
    """Changes to the weighted sum of the rewards, applied from top to bottom. None by default."""

    whiten: bool = False
    """Standardise the reward, (R - mean) / std, by running statistics, which are saved with the run."""
    clip: float | None = Field(default=None, gt=0.0)
    """Limit the reward to [-clip, clip], before penalties; 5 is usual with ``whiten``."""
    repetition: Repetition | None = None
    copying: Copying | None = None
    length: Length | None = None
    overlong: Overlong | None = None
    truncated: Truncated | None = None
    format: Format | None = None


_PENALTIES = ("repetition", "copying", "length", "overlong", "truncated", "format")


class Shaper:
    """Shapes the rewards of groups in place, and keeps the running statistics of whitening.

    Call it once per batch of new rollouts, after ``Rewards`` and before any mask is changed. Filters
    on variance or correctness read ``Completion.raw_reward``, which has no shaping or penalties:
    completions that score the same must not differ because of a length penalty.
    """

    def __init__(self, spec: ShapeSpec) -> None:
        self.spec = spec
        self.running = RunningFit()
        penalties = [(name, getattr(spec, name)) for name in _PENALTIES]
        self.penalties = [(name, p) for name, p in penalties if p is not None]

    def __call__(self, groups: Sequence[Group]) -> dict[str, float]:
        """Read ``Completion.reward``; fill ``raw_reward``, ``shaped_reward``, ``penalties`` and
        ``reward``. Completions without a reward are skipped; those of one episode count once, and
        their penalties are of all their tokens together.

        Returns:
            Means over the scored completions: "reward/raw", "reward/shaped", "reward/final",
            "reward/clipped" (share), "penalty/NAME"; with ``whiten`` the running mean and std.
            Empty if no completion was scored.
        """
        done = [(e, g, e[0].reward) for g in groups for e in g.episodes if e[0].reward is not None]
        if self.spec.whiten:
            raw = [reward for _, _, reward in done]
            self.running.add(raw, raw)
        clipped = 0
        for episode, g, reward in done:
            value = reward
            if self.spec.whiten:
                value = (value - self.running.mean_y) / self.running.std_y
            bound = self.spec.clip
            if bound is not None:
                clipped += abs(value) > bound
                value = min(max(value, -bound), bound)
            for c in episode:
                c.raw_reward, c.shaped_reward = reward, value
            self._penalise(episode, g)
        scored = [e[0] for e, _, _ in done if e[0].reward is not None]
        if not scored:
            return {}
        metrics = {
            "reward/raw": _mean([c.raw_reward for c in scored]),
            "reward/shaped": _mean([c.shaped_reward for c in scored]),
            "reward/final": _mean([c.reward for c in scored]),
        }
        for name, _ in self.penalties:
            metrics[f"penalty/{name}"] = _mean([c.penalties[name] for c in scored])
        if self.spec.clip is not None:
            metrics["reward/clipped"] = clipped / len(done)
        if self.spec.whiten:
            metrics["reward/running_mean"] = self.running.mean_y
            metrics["reward/running_std"] = self.running.std_y
        return metrics

    def _penalise(self, episode: Sequence[Completion], group: Group) -> None:
        joined, late = _joined(episode), f"the pattern ran longer than {PATTERN_S:g} s"
        try:
            penalties = {name: p(joined, group) for name, p in self.penalties}
        except TimeoutError:
            for c in episode:
                c.scores["format"] = Score(None, "timeout", late)
                c.reward = None
            return
        for c in episode:
            assert c.shaped_reward is not None
            c.penalties = dict(penalties)
            c.reward = math.fsum([c.shaped_reward, *penalties.values()])

    def state(self) -> dict[str, Any]:
        """The running statistics, as JSON."""
        return self.running.state()

    def load(self, state: dict[str, Any]) -> None:
        """Restore ``state`` exactly."""
        self.running = RunningFit.load(state)


def n_grams(ids: Ints, n: int) -> list[tuple[int, ...]]:
    """All sequences of ``n`` consecutive tokens, in order; empty if there are fewer tokens."""
    flat = ids.tolist()
    return [tuple(flat[i : i + n]) for i in range(len(flat) - n + 1)]


def _joined(episode: Sequence[Completion]) -> Completion:
    """An episode as one completion of its trained tokens, which ends as its last one does."""
    if len(episode) == 1:
        return episode[0]
    ids = np.concatenate([c.ids[c.mask] for c in episode])
    return replace(episode[-1], ids=ids, mask=np.ones(len(ids), dtype=np.bool_), turns=[])


def _mean(values: Sequence[float | None]) -> float:
    return float(np.mean([v for v in values if v is not None]))
