"""In which keys two arms differ: in what a claim names, and in nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trimtab.config import build
from trimtab.launch.commands import find_stage_type

ABSENT = object()
Stages = Mapping[str, Mapping[str, Any]]


def resolved(stages: Stages) -> dict[str, Any]:
    """The configuration of every stage with its defaults, as a nested mapping by stage."""
    return {
        name: build(
            find_stage_type(stage["type"], name).load_config(),
            {k: v for k, v in stage.items() if k != "type"},
            name,
        ).model_dump(mode="json")
        for name, stage in stages.items()
    }


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Every value that is no mapping, by its dotted path."""
    return dict(_leaves(values, ""))


def differing(one: Any, other: Any, path: str = "") -> set[str]:
    """Dotted paths at which the two differ, or that only one of them has."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        parts = [
            differing(one.get(k, ABSENT), other.get(k, ABSENT), f"{path}.{k}" if path else str(k))
            for k in one.keys() | other.keys()
        ]
        return set[str]().union(*parts)
    return set() if one == other else {path}


def but_rate(paths: set[str]) -> set[str]:
    """Without the learning rate, which is tuned for each arm.

    >>> but_rate({"rl.optim.lr", "rewards"})
    {'rewards'}
    """
    return {path for path in paths if not path.endswith("optim.lr")}


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping) or not value:
        yield path, value
        return
    for key, part in value.items():
        yield from _leaves(part, f"{path}.{key}" if path else str(key))
