"""What the doctor says and what others tell it: ``findings.jsonl``, ``probes.json``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Tier = Literal["T0", "T1", "T2"]
"""What a finding rests on: curves and facts of the data; rollouts and probes; the gold audit."""

Nature = Literal["mechanical", "alignment"]
"""Something is broken, or something other than what is wanted is being paid for."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Example(_Record):
    """A rollout or a row that shows a finding. Its text is data: escape it where it is shown."""

    prompt: str
    answer: str
    note: str = ""
    """Its score, or what to see in it."""
    step: int | None = None


class Finding(_Record):
    """One line of ``findings.jsonl``.

    >>> Finding(alarm=2, name="kl-runaway", nature="mechanical", title="KL runs away",
    ...         message="KL is 40 nats", figure="KL, nats", number=40.0, limit=18.0, tier="T0",
    ...         cause="beta too low", remedy="raise beta", change="").source
    'doctor'
    """

    alarm: int = Field(ge=1, le=18)
    """Its number in ``docs/doctor.md``."""
    name: str
    """The alarm's name."""
    nature: Nature
    severity: Literal["critical", "warning"] = "critical"
    title: str
    """A few plain words."""
    message: str
    """What was seen, in a sentence or two, with the number."""
    figure: str
    """What ``number`` is, with its unit."""
    number: float
    limit: float
    """What ``number`` was held against."""
    step: int | None = None
    """The step where it began; None where it was so before the first."""
    tier: Tier
    cause: str
    """The likeliest cause."""
    others: tuple[str, ...] = ()
    """Other causes, likelier ones first."""
    remedy: str
    """What to do, in a sentence."""
    change: str
    """YAML to paste into the run's configuration; empty where no key mends it."""
    rank: int = Field(default=0, ge=0)
    """Place among the findings of a run by likely cause, from 1."""
    examples: tuple[Example, ...] = Field(default=(), max_length=5)
    source: str = "doctor"
    """Who found it; a stage may write findings about itself."""


class Probe(BaseModel):
    """One entry of the list "probes" in ``probes.json``: what a probe measured of a model.

    Attributes read by the doctor: ``of`` "reward", "policy", "reference" or "judge"; ``probe``
    "flattery", "length", "swap", "canary", "accuracy"...; ``value`` with its interval, the number
    of pairs or items ``n``, and ``baseline``, what a blind model would get.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    of: Literal["reward", "policy", "reference", "judge"]
    probe: str
    value: float | None = None
    """None where it could not be measured."""
    n: int = Field(default=0, ge=0)
    low: float | None = None
    high: float | None = None
    baseline: float | None = None
    name: str = ""
    """Which reward model or judge, where there are several."""
    source: str = ""
    """Whose texts were asked: "data" (the user's) or "sandbox"."""
    verdict: str = ""
    """ "bad", "fair" or "good", where whoever probed said so."""
    step: int | None = None
    """Of the policy, where it was probed during training."""
    examples: tuple[dict[str, Any], ...] = ()

    def shown(self) -> tuple[Example, ...]:
        """Its examples, as a finding shows them."""
        return tuple(
            Example(
                prompt=str(x.get("prompt", "")),
                answer=str(x.get("answer", "")),
                note=str(x.get("note", "")),
            )
            for x in self.examples[:5]
        )
