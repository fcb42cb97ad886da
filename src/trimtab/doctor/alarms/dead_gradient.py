"""Alarm 13: most of the batch has no gradient, or updates are skipped."""

from __future__ import annotations

import numpy as np

from trimtab.doctor.alarm import Alarm, Symptom, use
from trimtab.doctor.alarms import thresholds as limits
from trimtab.doctor.evidence import Evidence, start_mean
from trimtab.doctor.signals import constant_reward
from trimtab.stats.change import onset
from trimtab.stats.uncertainty import wilson


def check(e: Evidence) -> Symptom | None:
    """Most groups have equal rewards from early on, or many optimiser steps were skipped."""
    x, skipped = e.series("skipped")
    share = float(skipped.mean()) if len(skipped) else 0.0
    if share > limits.SKIPPED:
        return Symptom(
            message=(
                f"{share:.0%} of optimiser steps were skipped because the loss or gradient was not finite."
            ),
            number=share,
            limit=limits.SKIPPED,
            cause="the learning rate is far too high, or rows are broken",
            remedies=(use("lower-lr", divisor=10), use("read-rows")),
            step=onset(x, skipped > 0, 1),
        )
    if constant_reward(e):
        return None  # alarm 14
    x, uniform = e.require(
        "group/uniform", why=": methods without groups have no such gradient to lose"
    )
    third = max(3, len(x) // 3)
    early, median = float(uniform[:third].mean()), float(np.median(uniform))
    n = third * e.settings.batch_size
    lower = wilson(early * n, n)[0] if n else early
    if min(lower, float(uniform[:3].mean()), median) <= limits.EQUAL_GROUPS:
        return None  # groups that become equal later are solved, or alarms 7 and 8
    _, reward = e.series("reward/mean")
    rewards = np.array([r.reward for r in e.scored])
    best = float(rewards.max()) if len(rewards) else float(reward.max())
    easy = len(reward) > 0 and start_mean(reward) >= best - limits.TOO_EASY * max(
        abs(best), limits.NOISE
    )
    return Symptom(
        message=(
            f"In {median:.0%} of groups ({early:.0%} in the first third) all completions get the same "
            "reward, so these groups have no gradient."
        ),
        number=median,
        limit=limits.EQUAL_GROUPS,
        cause=f"the prompts are too {'easy' if easy else 'hard'} for this policy",
        other_causes=("the reward is constant", "too few completions per prompt"),
        remedies=(use("easier-or-harder-prompts"), use("dynamic-sampling")),
        step=onset(x, uniform > limits.EQUAL_GROUPS),
        rollouts=e.scored,
    )


ALARM = Alarm(
    number=13,
    name="dead-gradient",
    nature="mechanical",
    title="Most of the batch has no gradient",
    figure="share of groups with equal rewards, or of steps skipped",
    stages=("rl",),
    remedies=("dynamic-sampling", "easier-or-harder-prompts", "lower-lr"),
    precedence=160,
    check=check,
)
