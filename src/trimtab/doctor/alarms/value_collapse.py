"""Alarm 11: the critic explains nothing of returns that vary, and is not learning to."""

from __future__ import annotations

from collections import Counter

import numpy as np

from trimtab.doctor.alarm import Alarm, Symptom, use
from trimtab.doctor.alarms import thresholds as limits
from trimtab.doctor.evidence import Array, Evidence, Unchecked, end_mean
from trimtab.stats.change import onset, slope


def check(e: Evidence) -> Symptom | None:
    """Late explained variance is about 0 or values are flat, and neither rises."""
    x, explained = e.require("value/explained_variance")
    _, values = e.series("value/std")
    _, returns = e.series("value/return_std")
    # A constant reward leaves a critic nothing to learn: only steps where rewards differ count.
    at, spread = e.series("reward/std")
    equal = set(at[spread < limits.NOISE].tolist())
    counts = np.array([step not in equal for step in x.tolist()])
    x, explained = x[counts], explained[counts]
    if len(x) < limits.CRITIC_MIN:
        raise Unchecked(
            f"rewards differed in {len(x)} steps with a critic, {limits.CRITIC_MIN:g} are needed"
        )
    per_step = max(Counter(r.step for r in e.rollouts).values(), default=0)
    if 0 < per_step * len(x) < limits.CRITIC_SAMPLES:
        raise Unchecked(
            f"not enough data: the critic has learned from about {per_step * len(x)} completions, "
            f"{limits.CRITIC_SAMPLES:g} are needed"
        )
    varied = end_mean(returns, 0.5) if len(returns) else 1.0
    if varied < limits.RETURNS_VARY:
        return None
    late = float(np.median(explained[-max(3, len(x) // 3) :]))
    spread_end = end_mean(values, limits.CRITIC_END) if len(values) else None
    flat = spread_end is not None and spread_end < limits.VALUES_FLAT * varied
    if late > limits.EXPLAINED and not flat:
        return None
    if _climbs(x, explained, limits.EXPLAINED):
        return None  # learning, if late
    if (
        spread_end is not None
        and len(values) == len(counts)
        and spread_end < limits.VALUES_LOW * varied
        and _climbs(x, values[counts], limits.VALUES_RISE * varied)
    ):
        return None  # values begin to differ: it is learning from nothing
    critic_lr, lr = e.settings.critic_lr or 0.0, e.settings.lr or 0.0
    slow = flat or critic_lr < limits.CRITIC_LR_RATIO * lr
    varies = (
        ""
        if spread_end is None
        else f", and vary by {spread_end:.3g} while returns vary by {varied:.3g}"
    )
    return Symptom(
        message=(
            f"Over the last third of the steps the critic's values explain {late:.1%} of the variance of "
            f"returns{varies}."
        ),
        number=late,
        limit=limits.EXPLAINED,
        cause=(
            f"the critic does not learn (critic.optim.lr {critic_lr:g})"
            if slow
            else "values and returns are on different scales, or shifted"
        ),
        other_causes=(
            "the value clip range is too small",
            "returns are shifted against the tokens",
            "too few updates per batch",
        ),
        remedies=(use("critic-lr"),),
        step=onset(x, explained <= limits.EXPLAINED),
    )


def _climbs(x: Array, y: Array, rise: float) -> bool:
    """Whether the series rose for certain over its last two thirds, by more than ``rise``."""
    rest = slice(len(x) // 3, None)
    trend, low, _ = slope(x[rest], y[rest])
    return low > 0 and trend * float(x[-1] - x[rest][0]) > rise


ALARM = Alarm(
    number=11,
    name="value-collapse",
    nature="mechanical",
    title="The critic explains nothing",
    figure="explained variance of returns",
    stages=("rl",),
    remedies=("critic-lr", "whiten"),
    precedence=110,
    check=check,
)
