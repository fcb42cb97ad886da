"""What the doctor writes: one line of ``findings.jsonl`` per finding."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Tier = Literal["T0", "T1", "T2"]
"""The evidence of a finding: curves and facts of the data; rollouts and probes; the gold audit."""

Nature = Literal["mechanical", "alignment"]
"""Something is broken, or the reward pays for something that nobody wants."""

Severity = Literal["critical", "warning"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Example(_Record):
    """A rollout or a row that shows a finding. Its text is untrusted: escape it where it is shown."""

    prompt: str
    completion: str
    note: str = ""
    """Its score, or what to look at."""
    step: int | None = None


class Prescription(_Record):
    """A remedy of the catalogue with the numbers of one finding."""

    name: str
    """Its name in ``doctor.remedies``."""
    change: str = ""
    """YAML to paste into the run's configuration; empty where no key helps."""


class Finding(_Record):
    """One line of ``findings.jsonl``.

    >>> Finding(alarm=2, name="kl-runaway", nature="mechanical", title="KL runs away",
    ...         message="KL is 40 nats", figure="KL, nats", number=40.0, limit=18.0, tier="T0",
    ...         cause="beta too low", remedy="Raise beta.").source
    'doctor'
    """

    alarm: int = Field(ge=1)
    """Its number in ``docs/doctor.md``."""
    name: str
    """The alarm's name."""
    nature: Nature
    severity: Severity = "critical"
    title: str
    """What is wrong, in a few words."""
    message: str
    """What was measured, in a sentence or two, with numbers."""
    figure: str
    """What ``number`` is, with its unit."""
    number: float
    limit: float
    """What ``number`` was compared with."""
    step: int | None = None
    """The step at which it began; None if it was so from the start."""
    tier: Tier
    cause: str
    """The most likely cause."""
    other_causes: tuple[str, ...] = ()
    """Other possible causes, the more likely ones first."""
    remedy: str
    """What to do, in a few sentences."""
    change: str = ""
    """YAML to paste into the run's configuration: the changes of all ``remedies``."""
    remedies: tuple[Prescription, ...] = ()
    rank: int = Field(default=0, ge=0)
    """Place among the findings of the run, the most likely root cause first, from 1."""
    examples: tuple[Example, ...] = Field(default=(), max_length=5)
    source: str = "doctor"
    """Who wrote it; a stage may write findings about itself."""
