"""One record for every label, whoever gave it: people, simulated annotators, AI judges, gold.

An ``Item`` is a prompt with its completions; a ``Judgement`` is one annotator's verdict on it. Both
are lines of JSON on disk. Agreement, audit, exchange and training read only these two.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from trimtab.types import Row

Who = Literal["human", "simulated", "ai", "gold"]
Status = Literal["ok", "skip", "error"]
Mark = Literal[-1, 0, 1]
"""A reasoning step: bad, neutral, good."""
Message = Row
"""``role`` and ``content``, and whatever else the row's message holds."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Item(_Record):
    """What is compared: one prompt and two or more completions of it.

    >>> Item.of([{"role": "user", "content": "2+2?"}], ["4", "5"]).id
    '32a3df4771ab758f'
    """

    id: str
    prompt: tuple[Message, ...]
    """Messages up to the completion, with or without a system message."""
    completions: tuple[str, ...] = Field(
        min_length=1, validation_alias=AliasChoices("completions", "answers")
    )
    """[K]. Their index identifies them everywhere else; the order in which they were shown is in
    ``Judgement.order``. Files of earlier releases call them ``answers``."""
    models: tuple[str | None, ...] | None = None
    """[K] the model that wrote each completion; never shown to an annotator."""
    steps: tuple[tuple[str, ...], ...] | None = None
    """[K] the reasoning steps of each completion, where steps are marked."""
    extra: Row = Field(default_factory=dict[str, Any])
    """Other columns of the row."""

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        for name, values in (("models", self.models), ("steps", self.steps)):
            if values is not None and len(values) != len(self.completions):
                raise ValueError(
                    f"{name}: {len(values)} values for {len(self.completions)} completions"
                )
        return self

    @classmethod
    def of(cls, prompt: Sequence[Message], completions: Sequence[str], **fields: Any) -> Item:
        """An item whose id is a hash of its prompt and completions."""
        text = json.dumps([list(prompt), list(completions)], sort_keys=True, ensure_ascii=False)
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        return cls(id=name, prompt=tuple(prompt), completions=tuple(completions), **fields)


class Judgement(_Record):
    """One annotator's verdict on one item. It is never changed: a later one ``replaces`` it.

    >>> j = Judgement(item="a", annotator="ann", ranks=(1, 0, 1))
    >>> list(j.pairs())
    [(1, 0), (1, 2)]
    """

    item: str
    """Id of the item."""
    annotator: str
    """Name of a person or a simulated annotator, or a judge's model and rubric."""
    who: Who = "human"
    status: Status = "ok"
    """ "skip": the annotator gave no verdict. "error": a judge failed; neither a label nor a tie."""
    ranks: tuple[int, ...] | None = None
    """[K] 0 is best, equal ranks tie; None unless ``status`` is "ok"."""
    order: tuple[int, ...] | None = Field(
        default=None, validation_alias=AliasChoices("order", "shown")
    )
    """[K] completions in the order shown: ``order[0]`` was first (left). None: in the item's order.
    Files of earlier releases call it ``shown``."""
    strength: int | None = Field(default=None, ge=1, le=4)
    """How much better: 1 slightly, 2 better, 3 much, 4 very much. For pairs only."""
    prob: float | None = Field(default=None, ge=0.0, le=1.0)
    """P(completion 0 is better than completion 1), if the annotator gives one. For pairs only."""
    bad: bool = False
    """All completions are bad (ranks may still differ)."""
    flagged: bool = False
    """Someone else should look at the item: broken, offensive or unclear."""
    dimensions: dict[str, tuple[int, ...]] = Field(default_factory=dict[str, tuple[int, ...]])
    """Ranks [K] by rubric: "helpful", "honest", "harmless" or the user's own."""
    scores: dict[str, tuple[float, ...]] = Field(default_factory=dict[str, tuple[float, ...]])
    """Absolute scores [K] by rubric."""
    steps: dict[int, tuple[Mark | None, ...]] = Field(
        default_factory=dict[int, tuple[Mark | None, ...]]
    )
    """Marks of a completion's reasoning steps, by completion; None where not marked."""
    reason: str = ""
    seconds: float | None = Field(default=None, ge=0.0)
    """From shown to judged."""
    at: str | None = None
    """Time of the verdict, ISO 8601 in UTC."""
    seed: int | None = None
    """The seed that ``order`` was drawn from."""
    kind: Literal["plain", "gold", "repeat"] = "plain"
    """A gold item has a known best completion; a repeat shows the same annotator an item again."""
    replaces: str | None = None
    """Id of the judgement that this one replaces."""
    detail: Row = Field(default_factory=dict[str, Any])
    """Anything else a judge or importer keeps: rubric fingerprint, verdict by order, cost."""

    @model_validator(mode="after")
    def _check_ranks(self) -> Self:
        if (self.ranks is None) == (self.status == "ok"):
            raise ValueError(f"ranks: status {self.status!r} with ranks {self.ranks}")
        if self.ranks is not None and min(self.ranks) != 0:
            raise ValueError(f"ranks: {self.ranks} do not start at 0")
        if self.order is not None and sorted(self.order) != list(range(len(self.order))):
            raise ValueError(f"order: {self.order} is not an order of the completions")
        return self

    def pairs(self) -> Iterator[tuple[int, int]]:
        """(better, worse) for every pair of completions that are not tied."""
        ranks = self.ranks or ()
        for i, a in enumerate(ranks):
            for j, b in enumerate(ranks):
                if a < b:
                    yield i, j

    @property
    def first(self) -> int:
        """The completion that was shown first."""
        return self.order[0] if self.order else 0
