"""Command lines: ``--a.b value`` laid on a configuration, and its keys as help."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from trimtab.config import set_path
from trimtab.errors import ConfigError


def parse(
    args: Sequence[str], more: frozenset[str] = frozenset()
) -> tuple[list[str], dict[str, Any], set[str]]:
    """Arguments as positionals, nested values of ``--a.b value``, and bare switches: the usual
    ones and ``more``.

    Raises:
        ConfigError: a flag lacks its value.
    """
    places: list[str] = []
    values: dict[str, Any] = {}
    switches: set[str] = set()
    known = {"help", "dry-run", *more}
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if word == "-h":
            word = "--help"
        if not word.startswith("--"):
            places.append(word)
            continue
        name, eq, text = word[2:].partition("=")
        if name in known and not eq:
            switches.add(name)
            continue
        if not eq:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"--{name}: needs a value (write --{name} VALUE)")
            text = rest.pop(0)
        set_path(values, name.replace("-", "_"), _value(text))
    return places, values, switches


def _value(text: str) -> Any:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(found, str):
        # YAML 1.1 reads 1e-4 as text.
        try:
            return float(found)
        except ValueError:
            return text
    return found


def _rows(kind: type[BaseModel], values: Any, prefix: str = "") -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    for field, info in kind.model_fields.items():
        name = info.alias or field
        path = f"{prefix}{name}"
        given: Any = values.get(name) if isinstance(values, dict) else None
        default = (
            info.get_default(call_default_factory=True)
            if not info.is_required()
            else PydanticUndefined
        )
        inner = _model_of(info.annotation, given, default)
        if inner is not None:
            below = (
                given
                if isinstance(given, dict)
                else default.model_dump()
                if isinstance(default, BaseModel)
                else {}
            )
            if default is None and not given:
                rows.append(
                    (
                        path,
                        "none",
                        f"{info.description or ''} Keys: {', '.join(inner.model_fields)}",
                    )
                )
            else:
                rows += _rows(inner, below, path + ".")
            continue
        shown = given if given is not None else default
        rows.append(
            (
                path,
                "(required)" if shown is PydanticUndefined else str(shown),
                info.description or "",
            )
        )
    return rows


def _model_of(annotation: Any, given: Any, default: Any) -> type[BaseModel] | None:
    if isinstance(default, BaseModel) and given is None:
        return type(default)
    arms = typing.get_args(annotation) or (annotation,)
    models = [a for a in arms if isinstance(a, type) and issubclass(a, BaseModel)]
    if isinstance(given, dict) and "type" in given and hasattr(annotation, "named"):
        return annotation.named(str(given["type"]))
    if typing.get_origin(annotation) in (tuple, list, dict) or not models:
        return None
    if isinstance(given, dict):
        for m in models:
            tag = next((f for f in ("kind", "type") if f in m.model_fields), None)
            if tag and given.get(tag) == m.model_fields[tag].default:
                return m
    return type(default) if isinstance(default, BaseModel) else models[0]


def show_keys(name: str, kind: type[BaseModel], values: dict[str, Any]) -> str:
    """Help of a stage: every key, the value that would be used, what it means."""
    lines = [f"trimtab {name} [FILE.yaml] [--key value ...]", ""]
    for path, value, about in _rows(kind, values):
        lines.append(f"  --{path:<34} {value:<22} {' '.join(about.split())}")
    return "\n".join(lines)
