"""What an alarm is: a check of the evidence that reports a symptom, nothing, or "cannot be checked"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trimtab.config import merge
from trimtab.doctor.evidence import Evidence, Rollout, spread
from trimtab.doctor.finding import Example, Finding, Nature, Prescription, Severity, Tier
from trimtab.doctor.remedies import CATALOGUE, Change, to_yaml

RL_STAGES = ("rl", "online_dpo")
PAIR_STAGES = ("dpo", "reward")
MAX_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Use:
    """A remedy of the catalogue by name, with numbers of this finding for its change."""

    name: str
    numbers: tuple[tuple[str, float], ...] = ()


def use(name: str, **numbers: float) -> Use:
    """``Use`` with its numbers as keyword arguments of the remedy's change."""
    return Use(name, tuple(numbers.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptom:
    """What a check found; ``Alarm`` adds what is the same every time. Fields are those of ``Finding``."""

    message: str
    number: float
    limit: float
    cause: str
    remedies: tuple[Use, ...]
    """What to do, the most important first."""
    tier: Tier = "T0"
    step: float | None = None
    other_causes: tuple[str, ...] = ()
    severity: Severity = "critical"
    rollouts: Sequence[Rollout] = ()
    """Rollouts that show it, the clearest first."""
    note: Callable[[Rollout], str] | None = None
    """What to look at in a rollout; its reward when not given."""
    examples: tuple[Example, ...] = ()
    """Used instead of ``rollouts`` where the evidence is no rollout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """One alarm. A module of ``doctor/alarms`` that has one adds it to the doctor."""

    number: int
    name: str
    nature: Nature
    title: str
    figure: str
    """What its number is, with the unit."""
    remedies: tuple[str, ...]
    """Names in the catalogue of what helps against it, the best first."""
    precedence: int
    """Place in the order of causes: a finding with a lower one explains those with higher ones."""
    check: Callable[[Evidence], Symptom | None]
    """May raise ``Unchecked``."""
    stages: tuple[str, ...] = RL_STAGES
    """Training stages whose runs it checks."""

    def __call__(self, evidence: Evidence) -> Finding | None:
        """The finding, or None where nothing is wrong.

        Raises:
            Unchecked: the run lacks what the check reads.
        """
        symptom = self.check(evidence)
        if symptom is None:
            return None
        examples = symptom.examples or tuple(
            r.example(symptom.note(r) if symptom.note else "") for r in spread(symptom.rollouts)
        )
        changes: dict[str, Change] = {
            u.name: CATALOGUE[u.name].change(evidence.settings, **dict(u.numbers))
            for u in symptom.remedies
        }
        changes = {n: c for n, c in changes.items() if c or not CATALOGUE[n].optional}
        merged: Change = {}
        for change in changes.values():
            merged = merge(merged, change)
        return Finding(
            alarm=self.number,
            name=self.name,
            nature=self.nature,
            severity=symptom.severity,
            title=self.title,
            message=symptom.message,
            figure=self.figure,
            number=float(symptom.number),
            limit=float(symptom.limit),
            step=None if symptom.step is None else int(symptom.step),
            tier=symptom.tier,
            cause=symptom.cause,
            other_causes=symptom.other_causes,
            remedy=" ".join(CATALOGUE[name].text for name in changes),
            change=to_yaml(merged),
            remedies=tuple(
                Prescription(name=name, change=to_yaml(change)) for name, change in changes.items()
            ),
            examples=examples[:MAX_EXAMPLES],
        )
