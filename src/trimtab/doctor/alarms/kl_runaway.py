"""Alarm 2: the policy runs away from its reference, and the distance buys no reward."""

from __future__ import annotations

import numpy as np

from trimtab.doctor.alarm import Alarm, Symptom, use
from trimtab.doctor.alarms import thresholds as limits
from trimtab.doctor.evidence import Array, Evidence, Rollout, end_mean, start_mean
from trimtab.stats.change import onset


def kl_target(e: Evidence) -> float:
    """The run's KL target in nats per completion, or the upper end of its range."""
    return float(e.settings.kl_target or limits.KL_TARGET)


def check(e: Evidence) -> Symptom | None:
    """KL is above three times its target, and a nat buys ever less reward or costs some."""
    x, kl = e.require("objective/kl")
    _, reward = e.require("reward/mean")
    target = kl_target(e)
    limit = limits.KL_FACTOR * target
    n = min(len(kl), len(reward))
    kl, reward, x = kl[-n:], reward[-n:], x[-n:]
    step = onset(x, kl > limit, 2)
    if step is None:
        return None
    at = int(np.searchsorted(x, step))
    lost, rate_before, rate_after = _rewards_per_nat(reward, kl, at, limit, _reward_unit(e))
    late = end_mean(kl)
    if lost <= limits.RUNAWAY_LOST and (
        late <= limit
        or (rate_after > limits.RUNAWAY_RATE * rate_before and rate_after > limits.RUNAWAY_RATE_MIN)
    ):
        return None
    result = (
        f"The reward has lost {lost:.1f} standard deviations from its best before: the policy is wrecked."
        if lost > limits.RUNAWAY_LOST
        else f"Since KL passed {limit:g} nats, a nat has changed the reward by {rate_after:+.3f} standard "
        f"deviations, compared with {rate_before:+.3f} before."
    )
    beta, lr = e.settings.beta or 0.0, e.settings.lr or 0.0
    return Symptom(
        message=(
            f"KL to the reference reached {kl.max():.1f} nats per completion ({late:.1f} at the end), more "
            f"than three times the target of {target:g}. {result}"
        ),
        number=float(kl.max()),
        limit=limit,
        cause=f"the KL penalty is too weak for this learning rate (beta {beta:g}, lr {lr:g})",
        other_causes=("the reward pays for text that the reference never writes",),
        remedies=(
            use("kl-target", target=target, beta=max(10 * beta, 0.02)),
            use("lower-lr", divisor=5),
            use("restart-before"),
        ),
        step=step,
        rollouts=[r for r in reversed(e.rollouts) if r.kl is not None and r.kl > limit],
        note=_note,
    )


def _reward_unit(e: Evidence) -> float:
    """The spread of rewards at the start: the unit of reward differences."""
    _, std = e.series("reward/std")
    rewards = [r.reward for r in e.scored if r.reward is not None]
    unit = start_mean(std) if len(std) else float(np.std(rewards)) if rewards else 1.0
    return unit if unit > limits.NOISE else 1.0


def _rewards_per_nat(
    reward: Array, kl: Array, at: int, limit: float, unit: float
) -> tuple[float, float, float]:
    """Reward lost since the best stretch before index ``at``, and reward per nat before and after it."""
    stretch = max(1, at // 5)
    means = np.convolve(reward[: max(1, at)], np.ones(stretch) / stretch, mode="valid")
    before, end = reward[: at + 1], end_mean(reward)
    lost = (float(means.max()) - end) / unit
    gained = (float(before.max()) - start_mean(before, limits.RUNAWAY_START)) / unit
    gained_after = (end - float(reward[max(0, at - 1) : at + 2].mean())) / unit
    return (
        lost,
        gained / max(float(kl[at] - kl[0]), 1e-6),
        gained_after / max(float(kl[at:].max() - limit), 1.0),
    )


def _note(r: Rollout) -> str:
    return f"KL {r.kl:.1f} nats, reward {r.reward:.3g}" if r.kl and r.reward is not None else ""


ALARM = Alarm(
    number=2,
    name="kl-runaway",
    nature="mechanical",
    title="The policy runs away from its reference",
    figure="KL to the reference, nats per completion",
    remedies=("kl-range", "kl-target", "lower-lr", "restart-before"),
    precedence=60,
    check=check,
)
