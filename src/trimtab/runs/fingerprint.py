"""What a result was made from: the resolved configuration, and the content of everything it names.

A run folder holds one fingerprint. A command that resumes there compares it with its own and refuses to
mix two runs. Which keys may change is said by the configuration classes, in ``extent_keys`` and
``free_keys``.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, Field, ValidationError

import trimtab
from trimtab.config import Config, is_local_function
from trimtab.errors import DataError
from trimtab.redact import redact
from trimtab.runs.code_content import code_content
from trimtab.runs.content import Content, model_content, path_content
from trimtab.runs.files import write_atomic

FILE = "fingerprint.json"


class Fingerprint(BaseModel):
    """Everything that determines a result."""

    version: str
    """Of trimtab."""
    stage: str
    """The stage, or the class of the configuration."""
    values: dict[str, Any] = {}
    """Values by dotted key, secrets redacted."""
    contents: dict[str, Content] = {}
    """The content of values that name an input; their paths are not compared."""
    extent: dict[str, Any] = {}
    """Values that say how far the work goes; they may change."""
    defaults: set[str] = Field(default=set(), exclude=True)
    """Keys whose value is the default: a fingerprint of an earlier release may lack them."""

    @classmethod
    def of(cls, config: Config) -> Fingerprint:
        """The fingerprint of a configuration; reads its data and hashes its models.

        Raises:
            DataError: a dataset cannot be read.
        """
        stage = str(getattr(config, "stage", type(config).__name__))
        fingerprint = cls(version=trimtab.__version__, stage=stage)
        fingerprint._add_config(config, "")
        return fingerprint

    def _add_config(self, config: Config, prefix: str) -> None:
        contents = config.input_contents()
        extent = config.declared_keys("extent_keys")
        free = config.declared_keys("free_keys", "output_folders", "output_files")
        models = config.declared_keys("model_keys")
        for name, info in type(config).model_fields.items():
            value = getattr(config, name)
            key = prefix + (info.alias or name)
            if name in extent:
                self.extent[key] = value
                continue
            if name in free:
                continue
            if not info.is_required() and value == info.get_default(call_default_factory=True):
                self.defaults.add(key)
            is_choice = typing.get_origin(info.annotation) is typing.Literal or name == "name"
            if name in contents:
                self.values[key], self.contents[key] = value, contents[name]
            elif name in models:
                self._add(value, key, model_content)
            else:
                self._add(value, key, code_content if is_choice else _named_content)

    def _add(self, value: Any, key: str, read: Callable[[str], Content | None]) -> None:
        """Add a value; ``read`` gives the content of what a text names."""
        if is_dataclass(value) and not isinstance(value, type):
            value = asdict(value)
        if isinstance(value, Config):
            self._add_config(value, f"{key}.")
        elif isinstance(value, Mapping):
            for name, item in cast("Mapping[str, Any]", value).items():
                self._add(item, f"{key}.{name}", read)
        elif isinstance(value, list | tuple):
            for i, item in enumerate(cast("Sequence[Any]", value)):
                self._add(item, f"{key}.{i}", read)
        else:
            self.values[key] = redact(_plain(value), key.rpartition(".")[2])
            if isinstance(value, str) and (content := read(value)) is not None:
                self.contents[key] = content

    def changes(self, new: Fingerprint) -> list[str]:
        """What ``new`` changes, one ``key: old -> new`` each; empty if it may resume this run."""
        if self.stage != new.stage:
            return [f"the stage: {self.stage} -> {new.stage}"]
        changes: list[str] = []
        for key in dict.fromkeys((*self.values, *new.values)):
            old_content, new_content = self.contents.get(key), new.contents.get(key)
            label = key.removesuffix(".path")
            if old_content and new_content:
                if change := old_content.change(new_content):
                    paths = dict.fromkeys(v[key] for v in (self.values, new.values))
                    changes.append(f"{label}: {change} ({' -> '.join(map(str, paths))})")
                continue
            is_new_default = key not in self.values and _is_default(key, new.defaults)
            if self.values.get(key) != new.values.get(key) and not is_new_default:
                old, value = (_text(v, key) for v in (self.values, new.values))
                changes.append(f"{key}: {old} -> {value}")
        return changes

    def write(self, folder: Path) -> None:
        """Write it into a run folder."""
        write_atomic(folder / FILE, self.model_dump_json(indent=1).encode("utf-8", "replace"))


def read_fingerprint(folder: Path) -> Fingerprint | None:
    """The fingerprint in a run folder; None if there is none.

    Raises:
        DataError: the file is damaged.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        return Fingerprint.model_validate_json(file.read_bytes())
    except ValidationError:
        raise DataError(
            f"{file}: damaged, so it cannot be checked that the run continues with the same inputs; "
            "remove the file to resume without the check"
        ) from None


def _is_default(key: str, defaults: Iterable[str]) -> bool:
    """Whether the key, or a group that holds it, has its default."""
    return any(key == d or key.startswith(f"{d}.") for d in defaults)


def _plain(value: Any) -> Any:
    """``value`` as it is read back from JSON."""
    is_finite = not isinstance(value, float) or math.isfinite(value)
    is_plain = value is None or isinstance(value, bool | int | float | str)
    return value if is_plain and is_finite else str(value)


def _text(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return "(not set)"
    value = values[key]
    if isinstance(value, str) and is_local_function(value):
        return f"{value} (a lambda or local function, which cannot be recognised again)"
    return "none" if value is None else str(value)


def _named_content(value: str) -> Content | None:
    """The content of the file, folder or code that a text names; None for any other text."""
    if (code := code_content(value)) is not None:
        return code
    # A separator such as "/" or "." is no path that anyone means.
    if not any(map(str.isalnum, value)) or len(value) > 1000:
        return None
    path = Path(value).expanduser()
    try:
        return path_content(path) if path.exists() else None
    except (OSError, ValueError):
        return None
