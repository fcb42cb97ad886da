"""Alarm 17: a preference loss widens the margin while the chosen completions become unlikely."""

from __future__ import annotations

from trimtab.doctor.alarm import Alarm, Symptom, use
from trimtab.doctor.alarms import thresholds as limits
from trimtab.doctor.evidence import Evidence, Unchecked, end_mean, start_mean
from trimtab.stats.change import onset


def check(e: Evidence) -> Symptom | None:
    """The margin grows and the chosen completions lose many nats compared with the start."""
    _, margin = e.require("rewards/margins", int(limits.DISPLACED_MIN))
    shift_x, shift = e.series("logps/chosen_shift")
    if len(shift) < limits.DISPLACED_MIN:
        raise Unchecked("logps/chosen_shift was not recorded: the method uses no reference model")
    late = end_mean(shift)
    growth = end_mean(margin) - start_mean(margin, 0.1)
    if late > limits.DISPLACED or growth <= 0:
        return None
    _, rejected = e.series("logps/rejected_shift")
    others = f" (the rejected ones {-end_mean(rejected):.1f})" if len(rejected) else ""
    beta = 0.1 if e.settings.objective_beta is None else e.settings.objective_beta
    return Symptom(
        message=(
            f"The margin grew by {growth:.2f}, but the chosen completions lost {-late:.1f} nats since the "
            f"start{others}: probability has moved to completions that are in neither column."
        ),
        number=late,
        limit=limits.DISPLACED,
        cause=f"beta {beta:g} is too small for these data, or pairs are repeated too often",
        other_causes=(
            "chosen and rejected completions are nearly the same text",
            "the data are far from what the model writes: run SFT on the chosen completions first",
        ),
        remedies=(use("anchor-chosen"),),
        step=onset(shift_x, shift < limits.DISPLACED),
    )


ALARM = Alarm(
    number=17,
    name="displacement",
    nature="mechanical",
    title="Chosen completions become unlikely",
    figure="log-prob of chosen completions compared with the start, nats",
    stages=("dpo", "online_dpo"),
    remedies=("anchor-chosen", "lower-lr"),
    precedence=120,
    check=check,
)
