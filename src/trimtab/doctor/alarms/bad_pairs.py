"""Alarm 18: comparisons contradict each other, leak into the held-out split, or follow order or length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from trimtab.doctor.alarm import PAIR_STAGES, Alarm, Symptom, use
from trimtab.doctor.alarms import thresholds as limits
from trimtab.doctor.alarms.template_mismatch import fact_examples
from trimtab.doctor.evidence import Evidence, Unchecked
from trimtab.doctor.finding import Example


def check(e: Evidence) -> Symptom | None:
    """The facts that a stage counted at its start show unusable labels."""
    counted = e.facts.get("comparisons")
    if not isinstance(counted, Mapping):
        raise Unchecked("no comparisons were counted in facts.json")
    facts = cast("Mapping[str, float]", counted)
    n = int(facts["pairs"])
    contradicted = facts["contradicted"]
    if contradicted > limits.BAD_PAIRS:
        # If two labels of the same pair are coin flips, half of the repeated pairs contradict.
        return _symptom(
            f"{contradicted:.1%} of {n} pairs are contradicted by another pair; "
            f"{max(facts['repeated'], limits.NOISE):.1%} were labelled more than once.",
            contradicted,
            limits.BAD_PAIRS,
            cause="annotators disagree, or rows were swapped",
            other_causes=("columns chosen and rejected are mixed up in some source",),
            examples=fact_examples(e.facts.get("odd"), "chosen both ways"),
        )
    leak = e.fact("leaked") or 0.0
    if leak > limits.BAD_PAIRS:
        return _symptom(
            f"{leak:.1%} of the held-out rows are also in the training split.",
            leak,
            limits.BAD_PAIRS,
            cause="the split was made after rows were repeated",
            other_causes=("near-duplicates in the source",),
        )
    if facts["same"] > limits.BAD_PAIRS:
        return _symptom(
            f"{facts['same']:.1%} of {n} pairs compare a text with itself.",
            facts["same"],
            limits.BAD_PAIRS,
            cause="duplicates in the source",
        )
    return _skew(
        facts, "chosen_first", "placed", limits.FIRST_SKEW, "shown first", "the order shown"
    ) or (_skew(facts, "chosen_longer", "sized", limits.LENGTH_SKEW, "that is longer", "length"))


def _skew(
    facts: Mapping[str, float], name: str, count: str, limit: float, which: str, follows: str
) -> Symptom | None:
    """Labels that follow something other than content."""
    from scipy.stats import binomtest  # slow to import

    if name not in facts or facts[count] < limits.SKEW_MIN:
        return None
    share, n = facts[name], int(facts[count])
    p = binomtest(round(share * facts[count]), n, 0.5).pvalue
    if max(share, 1 - share) <= limit or p >= limits.SKEW_P:
        return None
    return _symptom(
        f"The completion {which} is chosen in {share:.0%} of {n} pairs (p = {p:.1g}).",
        share,
        limit,
        cause=f"labels follow {follows}",
    )


def _symptom(
    message: str,
    number: float,
    limit: float,
    *,
    cause: str,
    other_causes: tuple[str, ...] = (),
    examples: tuple[Example, ...] = (),
) -> Symptom:
    return Symptom(
        message=message,
        number=number,
        limit=limit,
        cause=cause,
        other_causes=other_causes,
        remedies=(use("clean-pairs"),),
        examples=examples,
    )


ALARM = Alarm(
    number=18,
    name="bad-pairs",
    nature="alignment",
    title="Comparisons cannot be trusted",
    figure="share of pairs",
    stages=PAIR_STAGES,
    remedies=("clean-pairs",),
    precedence=30,
    check=check,
)
