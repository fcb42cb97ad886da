"""Command lines: ``--a.b value`` laid over a configuration, and its keys as help."""

import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import BaseModel

from trimtab.config import set_path
from trimtab.errors import ConfigError


@dataclass(slots=True)
class Arguments:
    """A command line, taken apart."""

    positionals: list[str] = field(default_factory=list[str])
    values: dict[str, Any] = field(default_factory=dict[str, Any])
    """Nested values of ``--a.b value``."""
    switches: set[str] = field(default_factory=set[str])
    """Flags of the command line itself, without a value: help, dry-run, …"""


def parse(
    words: Sequence[str],
    switches: frozenset[str] = frozenset(),
    is_boolean: Callable[[str], bool] = lambda _: False,
) -> Arguments:
    """Take a command line apart.

    Args:
        switches: Flags without a value, besides ``--help`` and ``--dry-run``.
        is_boolean: Whether a dotted key is a boolean one, whose value "true" may be left out.

    Raises:
        ConfigError: a flag lacks its value.
    """
    result = Arguments()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "-h":
            word = "--help"
        if not word.startswith("--"):
            result.positionals.append(word)
            continue
        name, has_value, text = word[2:].partition("=")
        if name in {"help", "dry-run", *switches} and not has_value:
            result.switches.add(name)
            continue
        key = name.replace("-", "_")
        if not has_value:
            if is_boolean(key) and (not rest or rest[0] not in ("true", "false")):
                text = "true"
            elif not rest or rest[0].startswith("--"):
                raise ConfigError(f"--{name}: needs a value; write --{name} VALUE")
            else:
                text = rest.pop(0)
        set_path(result.values, key, _value(text))
    return result


def _value(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        # YAML 1.1 reads 1e-4 as text.
        try:
            return float(value)
        except ValueError:
            return text
    return value


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a configuration."""

    path: str
    """Dotted."""
    value: str
    """What would be used."""
    help: str
    boolean: bool


def keys_of(config: type[BaseModel], values: Any, prefix: str = "") -> list[Key]:
    """Every key of a configuration class below ``prefix``, where ``values`` are set."""
    keys: list[Key] = []
    for name, info in config.model_fields.items():
        name = info.alias or name
        path = f"{prefix}{name}"
        value: Any = values.get(name) if isinstance(values, dict) else None
        default = None if info.is_required() else info.get_default(call_default_factory=True)
        about = " ".join((info.description or "").split())
        nested = _nested_config(info.annotation, value, default)
        if nested is not None and (value or default is not None or info.is_required()):
            default = default.model_dump() if isinstance(default, BaseModel) else {}
            keys += keys_of(nested, value if isinstance(value, dict) else default, path + ".")
            continue
        if nested is not None:
            about = f"{about} Keys: {', '.join(nested.model_fields)}".strip()
        text = str(default if value is None else value)
        if value is None and default is None:
            text = "(required)" if info.is_required() else "none"
        keys.append(Key(path, text, about, info.annotation is bool))
    return keys


def _nested_config(annotation: Any, value: Any, default: Any) -> type[BaseModel] | None:
    """The configuration class of a key: of its ``type`` in a union of them; None for a plain value."""
    if isinstance(default, BaseModel) and value is None:
        return type(default)
    if isinstance(value, dict) and "type" in value and hasattr(annotation, "named"):
        return annotation.named(str(value["type"]))
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated)
    arms = typing.get_args(annotation) if is_union else (annotation,)
    models = [a for a in arms if isinstance(a, type) and issubclass(a, BaseModel)]
    if isinstance(value, dict):
        for model in models:
            tag = model.model_fields.get("type")
            if tag and value.get("type") == tag.default:
                return model
    if isinstance(default, BaseModel):
        return type(default)
    return models[0] if models else None


def help_text(usage: str, about: str, config: type[BaseModel], values: dict[str, Any]) -> str:
    """Help of a command: every key, the value that would be used, and what it means."""
    lines = [f"trimtab {usage} [--key value ...]", f"  {about}", ""]
    lines += [f"  --{k.path:<34} {k.value:<22} {k.help}".rstrip() for k in keys_of(config, values)]
    return "\n".join(lines)
