"""Alarm 7: exploration ends while reward is left to win."""

from __future__ import annotations

from trimtab.doctor.alarm import Alarm, Symptom, use
from trimtab.doctor.alarms import thresholds as limits
from trimtab.doctor.evidence import Evidence, Unchecked, end_mean, start_mean
from trimtab.doctor.signals import compares_only, share_near_best
from trimtab.stats.change import onset, slope


def check(e: Evidence) -> Symptom | None:
    """Entropy is gone, or will be before the end, and many completions are below the best reward."""
    x, entropy = e.require("objective/entropy")
    start, late = start_mean(entropy, limits.ENTROPY_EDGE), end_mean(entropy, limits.ENTROPY_EDGE)
    floor = limits.ENTROPY_LEFT * start
    half = len(x) // 2
    trend, _, _ = slope(x[half:], entropy[half:])
    steps_left = e.total_steps - float(x[-1])
    ends_early = (
        trend < 0
        and late + trend * steps_left < 0
        and steps_left > limits.ENTROPY_HORIZON * e.total_steps
    )
    if late > floor and not ends_early:
        return None
    if compares_only(e):
        raise Unchecked(
            "entropy is gone, and a judge's comparisons do not tell whether there was more to win; "
            "audit gold, or add a reward of weight 0 that scores single completions"
        )
    near_best = share_near_best(e)
    if near_best >= limits.SOLVED:
        return None
    _, reward = e.series("reward/mean")
    left = late / max(start, limits.NOISE)
    s = e.settings
    return Symptom(
        message=(
            f"Entropy is {late:.3f} nats per token, {left:.0%} of the {start:.3f} at the start, and "
            f"{1 - near_best:.0%} of late completions are below the best reward (mean "
            f"{end_mean(reward, limits.ENTROPY_EDGE):.3g}): the policy no longer tries other completions."
        ),
        number=left,
        limit=limits.ENTROPY_LEFT,
        cause=(
            f"updates are too large for exploration to last (lr {s.lr or 0.0:g}, entropy_coef "
            f"{s.entropy_coef or 0.0:g})"
        ),
        other_causes=("there is no KL penalty", "prompts repeat too often"),
        remedies=(
            use("clip-higher"),
            use("entropy-bonus"),
            use("lower-lr", divisor=5),
            use("restart-before"),
        ),
        step=onset(x, entropy < max(floor, late * limits.ENTROPY_ONSET), 2),
        rollouts=e.scored[::-1],
    )


ALARM = Alarm(
    number=7,
    name="entropy-exhausted",
    nature="mechanical",
    title="Exploration has ended too early",
    figure="entropy left, share of the start",
    remedies=("clip-higher", "entropy-bonus", "decoding", "lower-lr"),
    precedence=170,
    check=check,
)
