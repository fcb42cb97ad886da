"""Rubrics: the criteria of a judge, as YAML files."""

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
    """The criteria of a judge. Only ``name`` and ``instructions`` are required."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """Becomes part of the annotator's name."""
    about: str = ""
    """A one-line description; the judge does not see it."""
    instructions: str = Field(min_length=1)
    """Instructions to the judge."""
    principles: tuple[str, ...] = ()
    """A constitution: principles that the better completion follows."""
    dimensions: dict[Dimension, str] = Field(default_factory=dict[str, str])
    """Separate verdicts: name and question of each."""
    scale: tuple[int, int] = (1, 10)
    """Lowest and highest score in mode "score"."""
    critique: bool = False
    """Whether the judge writes its reasons before the verdict."""

    @model_validator(mode="after")
    def _sane(self) -> Rubric:
        if self.scale[0] >= self.scale[1]:
            raise ValueError(f"scale: {list(self.scale)} must be [lowest, highest]")
        reserved = [d for d in self.dimensions if d in _RESERVED]
        if reserved:
            raise ValueError(
                f"dimensions: {reserved[0]!r} is a key of the reply; choose another name"
            )
        return self

    @property
    def fingerprint(self) -> str:
        """A hash of everything that the judge reads."""
        text = json.dumps(self.model_dump(exclude={"about"}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def principle(self, item: str) -> Rubric:
        """The rubric with one principle, drawn from a hash of ``item``."""
        if not self.principles:
            return self
        draw = int.from_bytes(hashlib.sha256(item.encode()).digest()[:8])
        only = (self.principles[draw % len(self.principles)],)
        return self.model_copy(update={"principles": only})


def shipped() -> list[str]:
    """Names of the built-in rubrics."""
    return sorted(p.stem for p in _HERE.glob("*.yaml"))


def load_rubric(name_or_path: str) -> Rubric:
    """Load a built-in rubric by name, or a rubric from a YAML file.

    >>> sorted(load_rubric("hhh").dimensions)
    ['harmless', 'helpful', 'honest']

    Raises:
        ConfigError: there is no such rubric, or the file is invalid; the message names file and key.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = _HERE / f"{name_or_path}.yaml"
        if name_or_path not in shipped():
            raise ConfigError(
                f"rubric: {name_or_path!r} is none of {', '.join(shipped())}, and not a YAML file"
            )
    return build(Rubric, read_yaml(path), str(path))
