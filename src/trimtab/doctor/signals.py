"""Signals that several alarms read: of completions (length, words, repetition) and of the reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from trimtab.doctor.alarms import thresholds as limits
from trimtab.doctor.evidence import MIN_ROLLOUTS, Array, Evidence, Rollout, Unchecked, start_mean
from trimtab.stats.change import onset, slope, two_means

WordPair = tuple[str, str]


def scored(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Those with a reward."""
    return [r for r in rollouts if r.reward is not None]


def lengths(rollouts: Sequence[Rollout]) -> Array:
    """Tokens of each completion [n]."""
    return np.array([r.tokens for r in rollouts], np.float64)


def reward_slope(e: Evidence, measure: Callable[[Sequence[Rollout]], Array]) -> float:
    """Reward per unit of ``measure`` [n] among completions of one prompt in one step; within steps if each
    prompt has one completion.

    A prompt that asks for a long completion is no padding, so prompts are not compared if possible.
    """
    by_prompt: dict[tuple[int, str], list[Rollout]] = {}
    for r in e.scored:
        by_prompt.setdefault((r.step, r.prompt), []).append(r)
    alone = mean([len(rs) for rs in by_prompt.values()]) < 2
    xs: list[Array] = []
    ys: list[Array] = []
    for rs in map(scored, e.by_step().values()) if alone else by_prompt.values():
        if len(rs) > (2 if alone else 1):
            x, y = measure(rs), np.array([r.reward for r in rs], np.float64)
            xs.append(x - x.mean())
            ys.append(y - y.mean())
    return slope(np.concatenate(xs), np.concatenate(ys))[0] if xs else 0.0


def scored_ends(e: Evidence) -> tuple[list[Rollout], list[Rollout]]:
    """Scored rollouts of the start and of the end, at least ``MIN_ROLLOUTS`` each.

    Raises:
        Unchecked: there are fewer.
    """
    early, late = (scored(part) for part in e.early_and_late)
    if min(len(early), len(late)) < MIN_ROLLOUTS:
        raise Unchecked(f"fewer than {MIN_ROLLOUTS} scored rollouts at the start or end")
    return early, late


def needs_power(early: Array, late: Array, change: float, z: float, what: str) -> None:
    """Called where an alarm did not ring: whether it could have, had the mean changed by ``change``.

    Raises:
        Unchecked: a change of that size would not have been told from chance at ``z`` standard errors.
    """
    error = float(np.sqrt(early.var() / len(early) + late.var() / len(late)))
    if z * error > change:
        raise Unchecked(
            f"not enough data: with {len(early)} and {len(late)} rollouts at the start and end, a change "
            f"of {what} below {z * error:.2g} cannot be told from chance; set loop.sample_steps lower"
        )


def words(rollout: Rollout) -> list[str]:
    """The completion's words in lower case."""
    return rollout.completion.lower().split()


def mean(values: Sequence[float | bool]) -> float:
    """Their mean as a float."""
    return float(np.mean(values))


def reward_rose(early: Sequence[Rollout], late: Sequence[Rollout]) -> bool:
    """Whether the mean reward rose, or nothing was scored."""
    a, b = ([r.reward for r in part if r.reward is not None] for part in (early, late))
    return not a or not b or mean(b) > mean(a)


def gold_rose(e: Evidence) -> bool | None:
    """Whether audited gold rose during the run; None without an audit that can tell."""
    if len(e.audit) < limits.GOLD_ROSE_MIN:
        return None
    third = len(e.audit) // 3
    t = two_means([a.gold for a in e.audit[:third]], [a.gold for a in e.audit[-third:]])
    return True if t > limits.GOLD_ROSE_T else False if t < limits.GOLD_NOT_ROSE_T else None


def first_step(
    e: Evidence, condition: Callable[[list[Rollout]], bool], consecutive: int = 2
) -> int | None:
    """The first sampled step from which the condition on its rollouts holds several times in a row."""
    by_step = e.by_step()
    return onset(list(by_step), [condition(rs) for rs in by_step.values()], consecutive)


def common_pairs(rollouts: Sequence[Rollout]) -> set[WordPair]:
    """Pairs of neighbouring words that completions of many different prompts share."""
    prompts: dict[WordPair, set[str]] = {}
    for r in rollouts:
        text = words(r)
        for pair in pairwise(text):
            prompts.setdefault(pair, set()).add(r.prompt)
    least = max(3.0, limits.COMMON_PAIR_SHARE * len({r.prompt for r in rollouts}))
    return {pair for pair, seen in prompts.items() if len(seen) >= least}


def own_pairs(rollout: Rollout, common: set[WordPair]) -> int:
    """How many different word pairs of a completion are not common ones: a measure of its content."""
    text = words(rollout)
    return len(set(pairwise(text)) - common)


def opening(completion: str, count: int = 6) -> str:
    """The first words of a completion, in lower case."""
    return " ".join(completion.lower().split()[:count])


def repetition(completion: str, n: int = 3) -> float:
    """1 - distinct / all n-grams of words; 0 without any.

    >>> repetition("a b a b a b"), repetition("a b c d e")
    (0.5, 0.0)
    """
    text = completion.lower().split()
    grams = [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def constant_reward(e: Evidence) -> bool:
    """Whether every completion gets the same reward, from the start."""
    _, std = e.series("reward/std")
    return len(std) > 0 and float(np.median(std)) < limits.NOISE and start_mean(std) < limits.NOISE


def compares_only(e: Evidence) -> bool:
    """Whether the reward only says which completion of a prompt is better than the others."""
    return any(r.source == "judge" and r.weight for r in e.settings.rewards)


def near_best(e: Evidence) -> float:
    """The least reward that counts as the best of the whole run."""
    rewards = np.array([r.reward for r in e.scored])
    if len(rewards) < limits.BEST_MIN:
        raise Unchecked(
            "too few scored rollouts to know what the best reward is; set loop.sample_steps"
        )
    best, lowest = np.quantile(rewards, [limits.BEST_QUANTILE, 1 - limits.BEST_QUANTILE])
    return float(best - limits.NEAR_BEST * max(best - lowest, limits.NOISE))


def share_near_best(e: Evidence) -> float:
    """Share of late rollouts near the best reward of the whole run."""
    least = near_best(e)
    steps = sorted({r.step for r in e.rollouts})
    last = set(steps[-max(1, len(steps) // 5) :])
    return mean([(r.reward or 0.0) >= least for r in e.scored if r.step in last])
