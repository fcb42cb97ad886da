"""Alarm 6: the reward model is no better than length or a coin, or is asked about unfamiliar text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.doctor.alarm import RL_STAGES, Alarm, Symptom, use
from trimtab.doctor.alarms import thresholds as limits
from trimtab.doctor.evidence import Evidence, Unchecked


def check(e: Evidence) -> Symptom | None:
    """The interval of held-out accuracy reaches down to a blind baseline; or an ensemble disagrees."""
    evaluations: list[tuple[str, Any]] = []
    if e.stage == "reward":
        evaluations.append(("This reward model", e.summary.get("eval")))
    evaluations += [(path, summary.get("eval")) for path, summary in e.reward_models.items()]
    measured = [
        (name, ev) for name, ev in evaluations if isinstance(ev, Mapping) and "accuracy" in ev
    ]
    probes = e.probes_of("reward", "accuracy")
    if not measured and not probes:
        raise Unchecked(
            "no held-out accuracy of a reward model; set eval_data or holdout, or run 'trimtab probe'"
        )
    for name, ev in measured:
        baseline = max(limits.COIN, float(ev.get("length_only", limits.COIN)))
        low = float(ev["accuracy_low"])
        if low <= baseline:
            return _weak(name, float(ev["accuracy"]), low, baseline, int(ev.get("pairs", 0)))
    for p in probes:
        baseline = max(limits.COIN, p.baseline or limits.COIN)
        if p.value is not None and p.low is not None and p.low <= baseline:
            return _weak(p.name or "The reward model", p.value, p.low, baseline, p.n)
    for p in e.probes_of("reward", "disagreement"):
        if p.value is not None and p.value >= limits.DISAGREEMENT and (p.low is None or p.low > 1):
            return Symptom(
                message=(
                    f"The members of the ensemble disagree {p.value:.1f} times as much on {p.n} rollouts "
                    "as on held-out completions."
                ),
                number=p.value,
                limit=limits.DISAGREEMENT,
                tier="T1",
                cause="the policy writes text that the reward models were not trained on",
                other_causes=("labels are too few",),
                remedies=(use("label-rollouts"),),
            )
    return None


def _weak(name: str, accuracy: float, low: float, baseline: float, pairs: int) -> Symptom:
    return Symptom(
        message=(
            f"{name} is right on {accuracy:.1%} of {pairs} held-out comparisons. Its interval reaches down "
            f"to {low:.1%}; length alone or a coin gets {baseline:.1%}."
        ),
        number=low,
        limit=baseline,
        tier="T1",
        cause="labels are too noisy or too few",
        other_causes=("the model is too small", "most pairs are nearly ties"),
        remedies=(use("more-labels"),),
    )


ALARM = Alarm(
    number=6,
    name="weak-reward-model",
    nature="alignment",
    title="The reward model is too weak",
    figure="lower end of the interval of held-out accuracy",
    stages=("reward", *RL_STAGES),
    remedies=("more-labels", "average-weights", "switch-ensemble", "worst-case", "uncertainty"),
    precedence=40,
    check=check,
)
