"""Datasets: where rows come from, and loading them as groups."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, ClassVar

from pydantic import Field, model_validator

from trimtab.config import Config
from trimtab.data import formats, sources
from trimtab.errors import DataError, RowError
from trimtab.types import Group

log = logging.getLogger(__name__)


class DataSpec(Config):
    """Where rows come from."""

    renamed: ClassVar[dict[str, str]] = {
        "max_prompt": "max_prompt_length",
        "max_completion": "max_completion_length",
    }

    path: str
    """A local jsonl, json, parquet, csv or txt file (gz too), or a hub id."""
    split: str | None = None
    """Split of a hub dataset."""
    limit: int | None = Field(default=None, gt=0)
    """Use the first rows only."""
    strict: bool = True
    """False drops bad rows and logs their number."""
    max_prompt_length: int = Field(default=512, gt=0)
    """Longer prompts (tokens) are dropped and counted."""
    max_completion_length: int = Field(default=512, gt=0)
    """Longer completions (tokens) are truncated."""

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": str(value)} if isinstance(value, str | os.PathLike) else value


def load_groups(
    spec: DataSpec,
    make: Callable[[sources.Rows], list[formats.Example]],
    render: Callable[[formats.Example], Group | None],
    read: Callable[..., sources.Rows] = sources.read,
) -> list[Group]:
    """The rows of ``spec`` read by ``make`` and tokenised by ``render``; logs what was dropped.

    Args:
        spec: Where rows come from.
        make: Rows to examples.
        render: An example to a group; None when its prompt is too long.
        read: Reads the rows; ``feedback.comparisons.read_comparisons`` also reads label folders.

    Raises:
        DataError: a row cannot be used (strict), or nothing is left.
    """
    rows = read(spec.path, split=spec.split, limit=spec.limit, strict=spec.strict)
    examples = make(rows)
    groups: list[Group] = []
    too_long = 0
    for example in examples:
        try:
            group = render(example)
        except RowError as error:
            rows.bad(example.row, error.reason)
            continue
        if group is None:
            too_long += 1
        else:
            groups.append(group)
    if rows.dropped:
        log.info(
            "%s: %d bad rows dropped, first: %s", rows.name, len(rows.dropped), rows.dropped[0]
        )
    if too_long:
        log.info(
            "%s: %d of %d prompts dropped: longer than max_prompt_length",
            rows.name,
            too_long,
            len(examples),
        )
    if not groups:
        why = f" (first: {rows.dropped[0]})" if rows.dropped else ""
        raise DataError(
            f"{rows.name}: no row is left to train on{why}; raise max_prompt_length, or look at the data"
        )
    return groups


def split(groups: list[Group], count: int, name: str) -> tuple[list[Group], list[Group]]:
    """``groups`` without the last ``count``, and those, held out."""
    if count >= len(groups):
        raise DataError(
            f"{name}: holdout {count} leaves none of the {len(groups)} rows to train on"
        )
    return (groups[:-count], groups[-count:]) if count else (groups, [])
