"""One record for every label, whoever gave it: people, simulated annotators, AI judges, gold.

An ``Item`` is a question with its answers; a ``Judgement`` is what one annotator said of it. Both
are lines of JSON on disk. Agreement, audit, exchange and training read these and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Who = Literal["human", "simulated", "ai", "gold"]
Status = Literal["ok", "skip", "error"]
Mark = Literal[-1, 0, 1]
"""A process step: bad, neutral, good."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Item(_Record):
    """What is compared: one conversation and two or more answers to it.

    >>> Item.of([{"role": "user", "content": "2+2?"}], ["4", "5"]).id
    '32a3df4771ab758f'
    """

    id: str
    prompt: tuple[dict[str, Any], ...]
    """Messages (``role``, ``content``) up to the answer, a system message among them or not."""
    answers: tuple[str, ...] = Field(min_length=1)
    """[K]. Positions here are the names of answers everywhere else; what was shown first is in
    ``Judgement.shown``."""
    models: tuple[str | None, ...] | None = None
    """[K] who wrote each; never shown to an annotator."""
    steps: tuple[tuple[str, ...], ...] | None = None
    """[K] the steps of each answer, where steps are marked."""
    extra: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Other columns of the row."""

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        for name in ("models", "steps"):
            given = getattr(self, name)
            if given is not None and len(given) != len(self.answers):
                raise ValueError(f"{name}: {len(given)} for {len(self.answers)} answers")
        return self

    @classmethod
    def of(cls, prompt: list[dict[str, Any]], answers: list[str], **given: Any) -> Item:
        """An item named by its content."""
        text = json.dumps([prompt, answers], sort_keys=True, ensure_ascii=False)
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        return cls(id=name, prompt=tuple(prompt), answers=tuple(answers), **given)


class Judgement(_Record):
    """What one annotator said of one item. Never changed: a later one ``replaces`` it.

    >>> j = Judgement(item="a", annotator="ann", ranks=(1, 0, 1))
    >>> list(j.pairs())
    [(1, 0), (1, 2)]
    """

    item: str
    annotator: str
    """A person's name, a simulated annotator's, or a judge's model and rubric."""
    who: Who = "human"
    status: Status = "ok"
    """ "skip": nothing said. "error": a judge failed; it is no label, and no tie."""
    ranks: tuple[int, ...] | None = None
    """[K] 0 is best, equal ranks tie; None unless ``status`` is "ok"."""
    shown: tuple[int, ...] | None = None
    """[K] answers in the order shown: ``shown[0]`` was first (left). None: in the item's order."""
    strength: int | None = Field(default=None, ge=1, le=4)
    """How much better: 1 slightly, 2 better, 3 much, 4 very much. Pairs alone."""
    prob: float | None = Field(default=None, ge=0.0, le=1.0)
    """P(answer 0 is better than answer 1), where the annotator gives one. Pairs alone."""
    bad: bool = False
    """All answers are bad (ranks may still differ)."""
    flagged: bool = False
    """Wants another person's eye: broken, offensive, unclear."""
    dimensions: dict[str, tuple[int, ...]] = Field(default_factory=dict[str, tuple[int, ...]])
    """Ranks [K] by rubric: "helpful", "honest", "harmless" or the user's own."""
    scores: dict[str, tuple[float, ...]] = Field(default_factory=dict[str, tuple[float, ...]])
    """Absolute scores [K] by rubric."""
    steps: dict[int, tuple[Mark | None, ...]] = Field(
        default_factory=dict[int, tuple[Mark | None, ...]]
    )
    """Marks of an answer's steps, by answer; None where not marked."""
    reason: str = ""
    seconds: float | None = Field(default=None, ge=0.0)
    """From shown to judged."""
    at: str | None = None
    """When, ISO 8601 in UTC."""
    seed: int | None = None
    """What ``shown`` was drawn from."""
    kind: Literal["plain", "gold", "repeat"] = "plain"
    """A gold item has a known answer; a repeat asks the same annotator again."""
    replaces: str | None = None
    """The judgement that this one takes back."""
    detail: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Anything else a judge or importer keeps: rubric fingerprint, verdict by order, cost."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.ranks is None) == (self.status == "ok"):
            raise ValueError(f"ranks: status {self.status!r} with ranks {self.ranks}")
        if self.ranks is not None and min(self.ranks) != 0:
            raise ValueError(f"ranks: {self.ranks} do not start at 0")
        if self.shown is not None and sorted(self.shown) != list(range(len(self.shown))):
            raise ValueError(f"shown: {self.shown} is not an order of the answers")
        return self

    def pairs(self) -> Iterator[tuple[int, int]]:
        """(better, worse) for every pair of answers that are not tied."""
        ranks = self.ranks or ()
        for i, a in enumerate(ranks):
            for j, b in enumerate(ranks):
                if a < b:
                    yield i, j

    @property
    def first(self) -> int:
        """The answer that was shown first."""
        return self.shown[0] if self.shown else 0
