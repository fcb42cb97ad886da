"""What a labelling run is made of: its configuration and its rubric."""

from __future__ import annotations

import getpass
import re
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field, field_validator, model_validator

from trimtab.config import Config, build, read_yaml
from trimtab.errors import ConfigError

_NAME = re.compile(r"[^\W_][\w .@+-]{0,39}")
OWNER = "owner"
"""The name of who started the server: sees progress, links and exports, and labels nothing."""

HHH = {
    "helpful": "Does what was asked, correctly and to the point",
    "honest": "Claims nothing false, and says so when it does not know",
    "harmless": "Does no harm, and refuses only what it should",
}


def _listed(value: Any) -> Any:
    """ "a,b" as typed on a command line, a list, or one value."""
    if value is None:
        return ()
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    given = cast("list[Any]", list(value)) if isinstance(value, list | tuple) else [value]
    return tuple(str(part) for part in given)


class Rubric(Config):
    """What annotators are asked; a YAML file with these keys."""

    question: str = ""
    """Above every item; empty: what fits its answers."""
    guidelines: str = ""
    """Markdown, shown on a page of its own."""
    dimensions: dict[str, str] = Field(default_factory=dict[str, str])
    """Further verdicts, each by name with the question it asks."""

    def asks(self, k: int) -> str:
        """The question on ``k`` answers."""
        usual = {1: "Is each step right?", 2: "Which answer is better?"}
        return self.question or usual.get(k, "Which answers are better?")


class Plan(Config):
    """Who is asked what, and in which order."""

    seed: int = 0
    """Draws the order of items and the sides of every judgement."""
    overlap: int = Field(default=1, ge=1)
    """How many annotators judge each item, exactly."""
    ask: Literal["whole", "pairs", "sort"] = "whole"
    """More than two answers: ranked on one page; every pair; or the few pairs that sort them."""
    order: Literal["uniform", "active", "given"] = "uniform"
    """Which item next: at random; highest ``score`` of its row first; as in the file."""
    gold_share: float = Field(default=0.1, ge=0.0, le=0.5)
    """Share of what an annotator sees that is from ``gold``."""
    repeat_share: float = Field(default=0.05, ge=0.0, le=0.5)
    """Share of what an annotator sees that is an earlier item again."""
    repeat_gap: int = Field(default=10, ge=1)
    """Items between the two times."""
    hold: float = Field(default=30.0, gt=0.0)
    """Minutes for which an item is kept for who was shown it, before another may have it."""


class LabelConfig(Plan):
    """Configuration of ``trimtab label``."""

    data: str
    """Answers to compare (``prompt`` with 2 to 9 ``completions``, or ``chosen`` and ``rejected``);
    with ``model``, prompts to answer."""
    out: str = "runs/label"
    """Folder of the store and what is exported from it."""
    limit: int | None = Field(default=None, gt=0)
    """Use the first rows only."""
    strict: bool = True
    """False leaves bad rows out and says so."""
    annotators: tuple[str, ...] = ()
    """Names, as "ann,bob"; each gets an invitation link. None: you alone."""
    gold: str | None = None
    """Comparisons with a known answer, mixed in to check annotators."""
    rubric: str | None = None
    """A YAML file with ``question``, ``guidelines``, ``dimensions``; or "hhh": helpful, honest,
    harmless."""
    strength: bool = False
    """Ask how much better: 1 slightly, 2 better, 3 much, 4 very much."""
    marks: bool = False
    """Ask for a mark on every step of an answer: good, neutral, bad. Steps are the row's
    ``steps``, or the answer's lines."""
    model: tuple[str, ...] = ()
    """Sample the answers from this model (several: "A,B", in turn), while people label."""
    answers: int = Field(default=2, ge=1, le=9)
    """Answers to a prompt, over all models."""
    temperature: float = Field(default=1.0, ge=0.0)
    max_new_tokens: int = Field(default=256, gt=0)
    chat_template: str | None = None
    """For a tokenizer without one: a file, or "plain"."""
    host: str = "127.0.0.1"
    """Address to listen at; other than loopback, put TLS before it."""
    port: int = Field(default=8765, ge=0, le=65535)
    """0 takes a free one."""
    hosts: tuple[str, ...] = ()
    """Further names the server may be called by, as behind a proxy."""
    open: bool = True
    """Open the page in a browser, when started from a terminal."""

    @field_validator("annotators", "model", "hosts", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return _listed(value)

    @model_validator(mode="after")
    def _possible(self) -> LabelConfig:
        for name in self.annotators:
            if not _NAME.fullmatch(name) or name == OWNER:
                raise ValueError(
                    f"annotators: {name!r} cannot be a name: letters, digits and ' .@+-_', at most "
                    f"40, and not {OWNER!r}"
                )
        if len(set(self.annotators)) < len(self.annotators):
            raise ValueError(f"annotators: a name is there twice in {', '.join(self.annotators)}")
        if self.overlap > len(self.people):
            raise ValueError(
                f"overlap: {self.overlap} judgements of each item need as many annotators, and "
                f"there are {len(self.people)} ({', '.join(self.people)}); name more with --annotators"
            )
        if self.gold_share + self.repeat_share > 0.8:
            raise ValueError("gold_share and repeat_share leave less than a fifth for new items")
        if self.model and self.answers < len(self.model):
            raise ValueError(f"answers: {self.answers} is fewer than the models to answer")
        if self.model and self.answers == 1 and not self.marks:
            raise ValueError(
                "answers: one answer is compared with nothing; give 2, or --marks true"
            )
        if self.ask != "whole" and self.marks:
            raise ValueError("marks: steps are marked with ask: whole alone")
        return self

    @property
    def people(self) -> tuple[str, ...]:
        """Who labels: the annotators, or whoever started the command."""
        return self.annotators or (_me(),)


def _me() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        return "me"
    return name if _NAME.fullmatch(name) and name != OWNER else "me"


def read_rubric(config: LabelConfig) -> Rubric:
    """The rubric the configuration names, or the plain question.

    Raises:
        ConfigError: there is no such file, or a key of it is unknown.
    """
    if config.rubric is None:
        return Rubric()
    if config.rubric == "hhh":
        return Rubric(dimensions=HHH)
    if not Path(config.rubric).is_file():
        raise ConfigError(f'rubric: {config.rubric!r} is neither a YAML file nor "hhh"')
    rubric = build(Rubric, read_yaml(config.rubric), config.rubric)
    if len(rubric.dimensions) > 8:
        raise ConfigError(f"{config.rubric}: dimensions: at most 8 can be asked on one page")
    return rubric
