"""Alarm 23: losses, rewards or gradients are NaN or infinite, and stay so."""

from __future__ import annotations

import numpy as np

from trimtab.doctor.alarm import PAIR_STAGES, RL_STAGES, Alarm, Symptom, use
from trimtab.doctor.evidence import Array, Evidence, Unchecked

_WATCHED = (
    "loss",
    "nll",
    "reward/mean",
    "objective/kl",
    "objective/entropy",
    "rewards/margins",
    "margin",
    "logps/chosen",
    "logps/rejected",
)
_LEAST = 3
"""Steps at the end with a gradient norm that is not finite: mixed precision skips single ones."""


def check(e: Evidence) -> Symptom | None:
    """A metric of training was recorded, and no value since some step is finite."""
    watched = [
        n for n in e.metrics.names if n in _WATCHED or n.endswith("/loss") or "grad_norm" in n
    ]
    if not watched:
        raise Unchecked("no loss, reward or gradient norm was recorded")
    steps = e.metrics.steps
    since = {
        name: step
        for name, step in e.not_finite.items()
        if name in watched and _counts(e, name, step, steps)
    }
    if not since:
        return None
    first = min(since.values())
    lost = sorted(name for name, step in since.items() if step == first)
    others = len(since) - len(lost)
    more = f"; {others} more followed" if others else ""
    return Symptom(
        message=f"{', '.join(lost)}: not finite since step {first} of {e.last_step}{more}.",
        number=float(np.sum(steps >= first)),
        limit=0.0,
        tier="T0",
        cause="training diverged: the learning rate is too high for this precision and model",
        other_causes=(
            "a row without trained tokens, or with extreme rewards, gives a loss that is not finite",
            "weights or rewards were not finite from the start",
        ),
        remedies=(use("restart-before"), use("lower-lr"), use("read-rows")),
        step=first,
    )


def _counts(e: Evidence, name: str, step: int, steps: Array) -> bool:
    if "grad_norm" in name:
        return step <= int(steps[-_LEAST:][0])
    # A metric that never was a number is one that the method does not have; a loss always is one.
    return e.has(name) or name in ("nll", "reward/mean") or name.endswith("loss")


ALARM = Alarm(
    number=23,
    name="not-finite",
    nature="mechanical",
    title="Training is no longer finite",
    figure="steps with NaN or infinite values at the end",
    stages=(*RL_STAGES, *PAIR_STAGES, "sft", "process"),
    remedies=("restart-before", "lower-lr", "read-rows"),
    precedence=1,
    check=check,
)
