"""In which keys the resolved configurations of two arms differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trimtab.config import build
from trimtab.launch.commands import find_stage_type

Stages = Mapping[str, Mapping[str, Any]]


def resolved(stages: Stages) -> dict[str, Any]:
    """Every key of every stage, defaults included, by its dotted name."""
    flat: dict[str, Any] = {}
    for name, stage in stages.items():
        values = {k: v for k, v in stage.items() if k != "type"}
        config = build(find_stage_type(stage["type"], name).load_config(), values, name)
        flat |= dict(_leaves(config.model_dump(mode="json"), name))
    return flat


def differences(one: Stages, other: Stages) -> set[str]:
    """The dotted names that two arms have different values of."""
    a, b = resolved(one), resolved(other)
    return {k for k in a.keys() | b.keys() if a.get(k) != b.get(k)}


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}")
    else:
        yield name, value
