"""Datasets: where rows come from, and rows as groups."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from pydantic import Field, model_validator

from trimtab.config import Config
from trimtab.data import formats, sources
from trimtab.errors import DataError
from trimtab.runs.console import console
from trimtab.types import Group


class DataSpec(Config):
    """Where rows come from."""

    path: str
    """A local jsonl, json, parquet, csv or txt file (gz too), or a hub id."""
    split: str | None = None
    """Of a hub data set."""
    limit: int | None = Field(default=None, gt=0)
    """Use the first rows only."""
    strict: bool = True
    """False drops bad rows, counts them and says so."""
    max_prompt: int = Field(default=512, gt=0)
    """Longer prompts (tokens) are left out and counted."""
    max_completion: int = Field(default=512, gt=0)
    """Longer completions (tokens) are cut."""

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
    """The rows of ``spec`` read by ``make`` and tokenised by ``render``; says what was left out.

    Args:
        spec: Where rows come from.
        make: Rows to examples.
        render: An example to a group; None when its prompt is too long.
        read: Reads the rows; ``feedback.comparisons.read_comparisons`` also reads label folders.

    Raises:
        DataError: a row cannot be used (strict), or nothing is left.
    """
    rows = read(spec.path, split=spec.split, limit=spec.limit, strict=spec.strict)
    made = make(rows)
    if rows.dropped:
        console.print(
            f"{rows.name}: {len(rows.dropped)} bad rows dropped, first: {rows.dropped[0]}"
        )
    kept = [g for g in map(render, made) if g is not None]
    if len(kept) < len(made):
        console.print(
            f"{rows.name}: {len(made) - len(kept)} of {len(made)} prompts over max_prompt, left out"
        )
    if not kept:
        raise DataError(
            f"{rows.name}: no row is left to train on; raise max_prompt, or look at the data"
        )
    return kept


def split(groups: list[Group], count: int, name: str) -> tuple[list[Group], list[Group]]:
    """The last ``count`` held out."""
    if count >= len(groups):
        raise DataError(f"{name}: holdout {count} leaves none of {len(groups)} rows to train on")
    return (groups[:-count], groups[-count:]) if count else (groups, [])
