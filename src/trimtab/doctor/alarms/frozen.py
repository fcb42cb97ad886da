"""Alarm 3: the policy does not move, because of its KL penalty or its learning rate."""

from __future__ import annotations

from trimtab.doctor.alarm import Alarm, Symptom, use
from trimtab.doctor.alarms import thresholds as limits
from trimtab.doctor.evidence import Evidence, end_mean
from trimtab.doctor.signals import compares_only, share_near_best
from trimtab.stats.change import slope


def check(e: Evidence) -> Symptom | None:
    """No reward is gained though completions still differ in reward: the penalty or tiny steps forbid it."""
    x, reward = e.require("reward/mean")
    kl_x, kl = e.require("objective/kl")
    _, length = e.series("completion/length")
    limit = float(limits.FROZEN_KL)
    if len(length):
        limit = max(limit, limits.FROZEN_KL_PER_TOKEN * end_mean(length))
    moved = end_mean(kl, limits.FROZEN_END)
    _, low, high = slope(x, reward, limits.FROZEN_CONFIDENCE)
    if moved > limit or not low <= 0 <= high:
        return None
    beta, spread = _penalty(e)
    penalised = beta * limits.FROZEN_GAIN > spread
    # KL grows at most with the square of the steps: a slow policy, or one at its start, gets somewhere.
    horizon = max(float(e.total_steps), float(limits.FROZEN_STEPS))
    still = moved * max(1.0, horizon / float(kl_x[-1])) ** 2 < limits.FROZEN_NIL
    if not penalised and not still:
        return None
    _, uniform = e.series("group/uniform")
    differ = end_mean(e.series("reward/std")[1]) if e.has("reward/std") else 1.0
    if differ < limits.FROZEN_VARIES or (len(uniform) and end_mean(uniform) > limits.EQUAL_GROUPS):
        return None  # nothing to learn from: alarms 13 and 14
    if not compares_only(e) and share_near_best(e) > limits.FROZEN_SOLVED:
        return None  # it is at its best already
    if penalised:
        cause = (
            f"beta {beta:g} is too high: the best policy that it allows gains {spread / beta:.2g} standard "
            "deviations of reward"
        )
        others = ("the learning rate is too low",)
        remedies = (use("lower-beta", beta=max(0.1 * spread, 1e-3)),)
    else:
        cause = f"the learning rate {e.settings.lr or 0.0:g} is too low"
        others = ("beta is too high", "the adapter or the trained layers are too small")
        remedies = (use("raise-lr"),)
    return Symptom(
        message=(
            f"After {len(x)} steps the policy is {moved:.3f} nats per completion from the reference, and the "
            f"reward does not rise (99 % interval of its slope: {low:+.2g} to {high:+.2g} per step), though "
            f"rewards still vary by {differ:.3g}."
        ),
        number=moved,
        limit=limit if penalised else limits.FROZEN_NIL,
        cause=cause,
        other_causes=others,
        remedies=remedies,
        rollouts=e.rollouts[::-1],
    )


def _penalty(e: Evidence) -> tuple[float, float]:
    """The price of a nat, and the mean spread over the run of what it is weighed against."""
    _, beta = e.series("kl/beta")
    price = end_mean(beta) if len(beta) else e.settings.beta or 0.0
    # A KL term in the loss is weighed against scaled advantages, one in the reward against rewards.
    in_loss = e.settings.kl_place == "loss" and e.has("advantage/std")
    _, spread = e.series("advantage/std" if in_loss else "reward/std")
    return (
        0.0 if e.settings.kl_place == "none" else price,
        float(spread.mean()) if len(spread) else 1.0,
    )


ALARM = Alarm(
    number=3,
    name="frozen",
    nature="mechanical",
    title="The policy does not move",
    figure="KL to the reference, nats per completion",
    remedies=("lower-beta", "kl-target", "raise-lr"),
    precedence=150,
    check=check,
)
