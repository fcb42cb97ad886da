"""Where two nested configurations differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no mapping, with its dotted path."""
    if not isinstance(value, Mapping):
        yield path, value
        return
    for key, part in value.items():
        yield from leaves(part, f"{path}.{key}" if path else str(key))


def differing(one: Any, other: Any) -> set[str]:
    """Dotted paths at which the two differ, or that only one of them has."""
    first, second = dict(leaves(one)), dict(leaves(other))
    absent = object()
    return {
        path
        for path in first.keys() | second.keys()
        if first.get(path, absent) != second.get(path, absent)
    }
