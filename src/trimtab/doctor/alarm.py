"""What an alarm is: a question to the evidence with three answers, found, clean, cannot tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from trimtab.doctor.evidence import Evidence, Rollout, spread
from trimtab.doctor.finding import Finding, Nature, Tier


@dataclass(frozen=True, slots=True)
class Found:
    """What a check saw; ``Alarm`` adds what is the same every time."""

    message: str
    number: float
    limit: float
    tier: Tier
    cause: str
    remedy: str
    change: str = ""
    step: float | None = None
    others: tuple[str, ...] = ()
    shown: Sequence[Rollout] = ()
    severity: str = "critical"
    note: Callable[[Rollout], str] | None = None
    examples: tuple[Any, ...] = ()
    """In place of ``shown``, where the evidence is no rollout."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """One of the eighteen."""

    number: int
    name: str
    nature: Nature
    title: str
    figure: str
    """What its number is, with the unit."""
    stages: tuple[str, ...]
    """Of which runs it is asked."""
    check: Callable[[Evidence], Found | None]
    """May raise ``Unchecked``."""

    def __call__(self, evidence: Evidence) -> Finding | None:
        """The finding, or None where all is well.

        Raises:
            Unchecked: the run does not hold what the check reads.
        """
        found = self.check(evidence)
        if found is None:
            return None
        shown = found.examples or tuple(
            r.example(found.note(r) if found.note else "") for r in spread(found.shown)
        )
        return Finding.model_validate(
            {
                "alarm": self.number,
                "name": self.name,
                "nature": self.nature,
                "severity": found.severity,
                "title": self.title,
                "message": found.message,
                "figure": self.figure,
                "number": found.number,
                "limit": found.limit,
                "step": None if found.step is None else int(found.step),
                "tier": found.tier,
                "cause": found.cause,
                "others": found.others,
                "remedy": found.remedy,
                "change": found.change,
                "examples": shown[:5],
            }
        )


def held_kl(e: Evidence, target: float, beta: float | None = None) -> str:
    """YAML of a method whose KL is held at ``target`` nats, put in the loss where there is none."""
    kl: dict[str, Any] = {"type": "adaptive", "target": round(target, 2)}
    if beta is not None:
        kl["beta"] = float(f"{beta:.2g}")
    if e.key("method.kl.place") == "none":
        kl = {"place": "loss", "estimator": "k3", **kl}
    return paste({"method": {"kl": kl}})


def paid(e: Evidence, **over: Any) -> str:
    """YAML of the run's rewards with ``over`` in every one that takes it; empty where none does."""
    takes = {"residual_length": ("model", "models"), "timeout": ("function", "judge")}
    changed = False
    found: list[dict[str, Any]] = []
    for spec in e.config.get("rewards") or ():
        mine = {k: v for k, v in dict(spec).items() if v not in (None, [], (), {}, False)}
        for key, value in over.items():
            if any(mine.get(kind) for kind in takes[key]):
                mine[key] = value
                changed = True
        found.append(mine)
    return paste({"rewards": found}) if changed else ""


def paste(values: dict[str, Any]) -> str:
    """YAML, short things on one line."""
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=100).strip()
