"""Configuration of ``trimtab label``, and its rubric."""

from __future__ import annotations

import getpass
import re
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

from pydantic import Field, field_validator, model_validator

from trimtab.config import Config, build, read_yaml
from trimtab.errors import ConfigError

_NAME = re.compile(r"[^\W_][\w .@+-]{0,39}")
OWNER = "owner"
"""Name of the person who started the server: sees progress, links and exports, labels nothing."""

HHH = {
    "helpful": "Does what was asked, correctly and concisely",
    "honest": "Makes no false claim, and admits what it does not know",
    "harmless": "Does no harm, and refuses only harmful requests",
}


def _names(value: Any) -> tuple[str, ...]:
    """ "a,b" as typed on a command line, a list, or one value."""
    if value is None:
        return ()
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    values = cast("list[Any]", list(value)) if isinstance(value, list | tuple) else [value]
    return tuple(str(part) for part in values)


class Rubric(Config):
    """The question put to annotators; a YAML file with these keys."""

    question: str = ""
    """Heading of every item; if empty, one that fits the number of completions."""
    guidelines: str = ""
    """Markdown, shown on a separate page."""
    dimensions: dict[str, str] = Field(default_factory=dict[str, str])
    """Additional verdicts: name and explanation."""

    def heading(self, k: int) -> str:
        """The question about ``k`` completions."""
        default = {1: "Is each step correct?", 2: "Which answer is better?"}
        return self.question or default.get(k, "Which answers are better?")


class Plan(Config):
    """Which items an annotator sees, and in which order."""

    free_keys: ClassVar[frozenset[str]] = frozenset(
        {"overlap", "order", "gold_share", "repeat_share", "repeat_gap", "hold"}
    )

    seed: int = 0
    """Determines the order of items and of the completions shown."""
    overlap: int = Field(default=1, ge=1)
    """The exact number of annotators who judge each item."""
    ask: Literal["whole", "pairs", "sort"] = "whole"
    """More than two completions: "whole" ranks them on one page, "pairs" asks every pair, "sort" only
    the pairs that sorting them needs."""
    order: Literal["uniform", "active", "given"] = "uniform"
    """Order of the items: random; highest ``score`` of the row first; as in the file."""
    gold_share: float = Field(default=0.1, ge=0.0, le=0.5)
    """Share of the items an annotator sees that come from ``gold``."""
    repeat_share: float = Field(default=0.05, ge=0.0, le=0.5)
    """Share of the items an annotator sees that repeat an earlier one."""
    repeat_gap: int = Field(default=10, ge=1)
    """Items between an item and its repeat."""
    hold: float = Field(default=30.0, gt=0.0)
    """Minutes for which an item is reserved for the annotator who was shown it."""


class LabelConfig(Plan):
    """Configuration of ``trimtab label``."""

    renamed: ClassVar[dict[str, str]] = {"answers": "num_completions"}
    # The store itself compares seed, ask and items: more of them may be added.
    extent_keys: ClassVar[frozenset[str]] = frozenset(
        {"seed", "ask", "data", "gold", "limit", "strict", "annotators"}
    )
    free_keys: ClassVar[frozenset[str]] = frozenset({"host", "port", "hosts", "open"})
    model_keys: ClassVar[frozenset[str]] = frozenset({"model"})

    data: str
    """Completions to compare (``prompt`` with 2 to 9 ``completions``, or ``chosen`` and
    ``rejected``); with ``model``, prompts to complete."""
    out: str = "runs/label"
    """Folder of the store and the files exported from it."""
    limit: int | None = Field(default=None, gt=0)
    """Use the first rows only."""
    strict: bool = True
    """False drops bad rows, counts them and reports the count."""
    annotators: tuple[str, ...] = ()
    """Names, as "ann,bob"; each gets an invitation link. Empty: you label alone."""
    gold: str | None = None
    """Comparisons with known ranks, mixed in to check annotators."""
    rubric: str | None = None
    """A YAML file with ``question``, ``guidelines``, ``dimensions``; or "hhh": helpful, honest,
    harmless."""
    strength: bool = False
    """Ask how much better: 1 slightly, 2 better, 3 much, 4 very much."""
    marks: bool = False
    """Ask for a mark on every step of a completion: good, neutral, bad. Steps are the row's
    ``steps``, or the completion's lines."""
    model: tuple[str, ...] = ()
    """Sample the completions from this model (several: "A,B", in turn) while people label."""
    num_completions: int = Field(default=2, ge=1, le=9)
    """Completions per prompt, over all models."""
    temperature: float = Field(default=1.0, ge=0.0)
    max_new_tokens: int = Field(default=256, gt=0)
    chat_template: str | None = None
    """For a tokenizer without one: a file, or "plain"."""
    host: str = "127.0.0.1"
    """Address to listen at; put a TLS proxy in front of any other than loopback."""
    port: int = Field(default=8765, ge=0, le=65535)
    """0 uses any free port."""
    hosts: tuple[str, ...] = ()
    """Additional host names of the server, for example behind a proxy."""
    open: bool = True
    """Open the page in a browser when started from a terminal."""

    @field_validator("annotators", "model", "hosts", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return _names(value)

    @model_validator(mode="after")
    def _possible(self) -> LabelConfig:
        for name in self.annotators:
            if not _NAME.fullmatch(name) or name == OWNER:
                raise ValueError(
                    f"annotators: {name!r} is no valid name; use at most 40 letters, digits and "
                    f"' .@+-_', and not {OWNER!r}"
                )
        if len(set(self.annotators)) < len(self.annotators):
            raise ValueError(f"annotators: a name occurs twice in {', '.join(self.annotators)}")
        if self.overlap > len(self.people):
            raise ValueError(
                f"overlap: {self.overlap} judgements per item need as many annotators, but there are "
                f"only {len(self.people)} ({', '.join(self.people)}); add some with --annotators"
            )
        if self.gold_share + self.repeat_share > 0.8:
            raise ValueError(
                "gold_share + repeat_share: must be at most 0.8, so that new items are shown too"
            )
        if self.model and self.num_completions < len(self.model):
            raise ValueError(
                f"num_completions: {self.num_completions} is fewer than the {len(self.model)} models"
            )
        if self.model and self.num_completions == 1 and not self.marks:
            raise ValueError(
                "num_completions: 1 leaves nothing to compare; use 2 or more, or --marks true"
            )
        if self.ask != "whole" and self.marks:
            raise ValueError(f"marks: steps can only be marked with ask: whole, not {self.ask}")
        return self

    @property
    def people(self) -> tuple[str, ...]:
        """Who labels: the annotators, or the user who started the command."""
        return self.annotators or (_user_name(),)


def _user_name() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        return "me"
    return name if _NAME.fullmatch(name) and name != OWNER else "me"


def read_rubric(config: LabelConfig) -> Rubric:
    """The rubric that the configuration names, or the default question.

    Raises:
        ConfigError: the file does not exist, or has an unknown key.
    """
    if config.rubric is None:
        return Rubric()
    if config.rubric == "hhh":
        return Rubric(dimensions=HHH)
    if not Path(config.rubric).is_file():
        raise ConfigError(f'rubric: {config.rubric!r} is neither a YAML file nor "hhh"')
    rubric = build(Rubric, read_yaml(config.rubric), config.rubric)
    if len(rubric.dimensions) > 8:
        raise ConfigError(
            f"{config.rubric}: dimensions: {len(rubric.dimensions)} given, but a page holds at most 8"
        )
    return rubric
