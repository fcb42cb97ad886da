"""Rubrics: what a judge is told to look at, as YAML files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from trimtab.config import Config, build, read_yaml
from trimtab.errors import ConfigError

Dimension = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
_RESERVED = ("critique", "verdict", "ranks", "scores")
_HERE = Path(__file__).parent / "rubrics"


class Rubric(Config):
    """What is looked at. ``instructions`` alone is a whole rubric."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """Stands in the annotator's name."""
    about: str = ""
    """In a line, for people."""
    instructions: str = Field(min_length=1)
    """What the judge is told."""
    principles: tuple[str, ...] = ()
    """A constitution: principles that the better answer keeps."""
    dimensions: dict[Dimension, str] = Field(default_factory=dict[str, str])
    """Verdicts of their own, by name, each with what it asks."""
    scale: tuple[int, int] = (1, 10)
    """Lowest and highest score of mode "score"."""
    critique: bool = False
    """Reasons before the verdict."""

    @model_validator(mode="after")
    def _sane(self) -> Rubric:
        if self.scale[0] >= self.scale[1]:
            raise ValueError(f"scale: {list(self.scale)} must rise")
        reserved = [d for d in self.dimensions if d in _RESERVED]
        if reserved:
            raise ValueError(
                f"dimensions: {reserved[0]!r} is a key of the reply; choose another name"
            )
        return self

    @property
    def fingerprint(self) -> str:
        """Changes when anything a judge reads of it changes."""
        text = json.dumps(self.model_dump(exclude={"about"}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def principle(self, item: str) -> Rubric:
        """With one principle alone, drawn by the item."""
        if not self.principles:
            return self
        draw = int.from_bytes(hashlib.sha256(item.encode()).digest()[:8])
        only = (self.principles[draw % len(self.principles)],)
        return self.model_copy(update={"principles": only})


def shipped() -> list[str]:
    """Names of the package's rubrics."""
    return sorted(p.stem for p in _HERE.glob("*.yaml"))


def load_rubric(name_or_path: str) -> Rubric:
    """A rubric of the package by its name, or one's own from a YAML file.

    >>> sorted(load_rubric("hhh").dimensions)
    ['harmless', 'helpful', 'honest']

    Raises:
        ConfigError: there is none, or the file is faulty; file and key are named.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = _HERE / f"{name_or_path}.yaml"
        if name_or_path not in shipped():
            raise ConfigError(
                f"rubric: {name_or_path!r} is none of {', '.join(shipped())}, and no YAML file"
            )
    return build(Rubric, read_yaml(path), str(path))
