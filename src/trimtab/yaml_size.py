"""The size of what YAML says: a few lines of aliases may stand for millions of values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

MAX_VALUES = 1_000_000


def expanded_size(value: Any, sizes: dict[int, int] | None = None) -> int:
    """The number of values in nested mappings and lists, each counted as often as it is referred to.

    Args:
        sizes: Of the objects counted so far, by identity.

    Raises:
        RecursionError: a value holds itself, or they are nested too deeply.

    >>> shared = [1, 2]
    >>> expanded_size([shared, shared])
    7
    """
    sizes = {} if sizes is None else sizes
    if isinstance(value, Mapping):
        parts = [*cast("Mapping[Any, Any]", value).values()]
    elif isinstance(value, list):
        parts = cast("list[Any]", value)
    else:
        return 1
    if id(value) not in sizes:
        sizes[id(value)] = 1 + sum(expanded_size(part, sizes) for part in parts)
    return sizes[id(value)]
