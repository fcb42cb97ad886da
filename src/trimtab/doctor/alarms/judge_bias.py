"""Alarm 15: the judge decides by position, by length, or without reading."""

from __future__ import annotations

from typing import Any, cast

from trimtab.audit.probe_result import ProbeResult
from trimtab.doctor.alarm import Alarm, Symptom, use
from trimtab.doctor.alarms import thresholds as limits
from trimtab.doctor.evidence import Evidence, Unchecked
from trimtab.doctor.finding import Example


def check(e: Evidence) -> Symptom | None:
    """What is shown first wins too often or too rarely, or a probe of the judge is bad."""
    from scipy.stats import ttest_1samp  # slow to import

    judges = [r.name for r in e.settings.rewards if r.source == "judge"]
    checked = False
    for name in judges:
        x, first = e.series(f"reward/{name}/first")
        if len(x) < limits.FIRST_MIN:
            continue
        checked = True
        share = float(first.mean())
        p = float(cast("Any", ttest_1samp(first, 0.5)).pvalue)
        off = abs(share - 0.5)
        if off > limits.FIRST_OFF and p < limits.FIRST_P:
            return Symptom(
                message=(
                    f"The completion shown first wins {share:.0%} of the comparisons of judge {name!r} over "
                    f"{len(x)} steps, although the order is random (p = {p:.1g}). In the other order at "
                    f"least {2 * off:.0%} of the results would change."
                ),
                number=share,
                limit=0.5 + limits.FIRST_OFF if share > 0.5 else 0.5 - limits.FIRST_OFF,
                tier="T1",
                cause="the judge prefers a position",
                other_causes=("the judge does not read the completions",),
                remedies=(use("judge-both-orders"),),
                rollouts=e.rollouts[::-1],
            )
    for probe in (p for p in e.probes if p.of == "judge" and p.value is not None):
        checked = True
        if symptom := _by_probe(probe, probe.value or 0.0):
            return symptom
    if not checked:
        raise Unchecked(
            "the positions shown to the judge were not recorded"
            if judges
            else "no judge in this run, and no probe of one"
        )
    return None


def _by_probe(p: ProbeResult, value: float) -> Symptom | None:
    if p.probe.startswith("swap") and value < limits.SWAP_CONSISTENT:
        message = f"Swapping the two completions changes {1 - value:.0%} of {p.n} results."
        limit = float(limits.SWAP_CONSISTENT)
    elif p.probe == "canary" and value > 0:
        message = f"{value:.1%} of {p.n} completions without content win."
        limit = 0.0
    elif p.grade == "bad" and p.probe not in ("accuracy", "ece"):
        limit = p.baseline or 0.0
        message = f"Probe {p.probe!r}: {value:.0%} of {p.n}; expected are {limit:.0%}."
    else:
        return None
    return Symptom(
        message=message,
        number=value,
        limit=limit,
        tier="T1",
        cause="the judge can be won without content",
        remedies=(use("judge-both-orders"), use("fence-judge")),
        examples=tuple(
            Example(prompt=x.prompt, completion=x.completion, note=x.note) for x in p.examples[:5]
        ),
    )


ALARM = Alarm(
    number=15,
    name="judge-bias",
    nature="alignment",
    title="The judge decides by the wrong thing",
    figure="wins of what is shown first, or value of the probe",
    remedies=("judge-both-orders", "fence-judge"),
    precedence=20,
    check=check,
)
