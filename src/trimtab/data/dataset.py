"""Datasets: where rows come from, and loading them as groups."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from trimtab.config import Config
from trimtab.data import formats, schemas, sources
from trimtab.errors import DataError, RowError
from trimtab.runs.content import rows_content
from trimtab.types import Group

log = logging.getLogger(__name__)


class DataSpec(Config):
    """Where rows come from."""

    renamed: ClassVar[dict[str, str]] = {
        "max_prompt": "max_prompt_length",
        "max_completion": "max_completion_length",
    }

    def input_contents(self) -> dict[str, Any]:
        """The rows, as read."""
        if Path(self.path).expanduser().is_dir():  # labels, whose files are compared
            return {}
        rows = self.rows()
        return {"path": rows_content(row for _, row in rows.rows)}

    def rows(self, read: Callable[..., sources.Rows] = sources.read) -> sources.Rows:
        """The rows, as ``read`` gives them."""
        rows = read(
            self.path, split=self.split, subset=self.subset, limit=self.limit, strict=self.strict
        )
        rows.format = self.format
        return rows

    path: str
    """A local jsonl, json, parquet, csv or txt file (gz too), or a hub id."""
    split: str | None = None
    """Split of a hub dataset."""
    subset: str | None = None
    """Subset (configuration) of a hub dataset, such as "comparisons"."""
    limit: int | None = Field(default=None, gt=0)
    """Use the first rows only."""
    format: str | None = None
    """Schema of the columns (docs/data.md), where they fit several; "trl" takes them as they are."""
    strict: bool = True
    """False drops bad rows and logs their number."""
    max_prompt_length: int = Field(default=512, gt=0)
    """Longer prompts (tokens) are dropped and counted."""
    max_completion_length: int = Field(default=512, gt=0)
    """Longer completions (tokens) are truncated and counted."""

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": str(value)} if isinstance(value, str | os.PathLike) else value

    @field_validator("format")
    @classmethod
    def _check_format(cls, value: str | None) -> str | None:
        if value is not None and value not in schemas.NAMES:
            raise ValueError(f"{value!r} is none of {', '.join(schemas.NAMES)}")
        return value


@dataclass(slots=True)
class ReadCounts:
    """What reading lost, for ``facts.json``."""

    bad_rows: int = 0
    """Rows dropped because they cannot be used (``strict: false``)."""
    long_prompts: int = 0
    """Rows dropped because their prompt is over ``max_prompt_length``."""
    equal_completions: int = 0
    """Rows dropped because their completions have the same tokens, most often after truncation."""
    completions: int = 0
    """Completions read."""
    cut_completions: int = 0
    """Those truncated to ``max_completion_length``: they have no end token."""


def load_groups(
    spec: DataSpec,
    make: Callable[[sources.Rows], list[formats.Example]],
    render: Callable[[formats.Example], Group | None],
    read: Callable[..., sources.Rows] = sources.read,
    *,
    counts: ReadCounts | None = None,
) -> list[Group]:
    """The rows of ``spec`` read by ``make`` and tokenised by ``render``; logs what was dropped.

    Args:
        render: An example to a group; None when its prompt is too long.
        read: Reads the rows; ``feedback.comparisons.read_comparisons`` also reads label folders.
        counts: What is lost is added to it.

    Raises:
        DataError: a row cannot be used (strict), or nothing is left.
    """
    rows = spec.rows(read)
    examples = make(rows)
    lost = ReadCounts()
    groups: list[Group] = []
    for example in examples:
        try:
            group = render(example)
        except RowError as error:
            rows.bad(example.row, error.reason)
            continue
        if group is None:
            lost.long_prompts += 1
            continue
        lost.completions += len(group.completions)
        lost.cut_completions += sum(c.finish == "length" for c in group.completions)
        if _compares(group) and not _compares(_tie_equal(group)):
            lost.equal_completions += 1
            continue
        groups.append(group)
    lost.bad_rows = len(rows.dropped)
    _log_losses(spec, rows, lost, len(examples))
    if counts is not None:
        for name in ReadCounts.__slots__:
            setattr(counts, name, getattr(counts, name) + getattr(lost, name))
    if not groups:
        why = f" (first: {rows.dropped[0]})" if rows.dropped else ""
        raise DataError(
            f"{rows.name}: no row is left to train on{why}; raise max_prompt_length and "
            "max_completion_length, or look at the data"
        )
    return groups


def _compares(group: Group) -> bool:
    """Whether some completion is ranked above another."""
    return len({c.rank for c in group.completions if c.rank is not None}) > 1


def _tie_equal(group: Group) -> Group:
    """``group``, in which completions with the same tokens share the better rank: the model cannot
    tell them apart."""
    ranked = [c for c in group.completions if c.rank is not None]
    best: dict[bytes, int] = {}
    for c in ranked:
        assert c.rank is not None
        best[c.ids.tobytes()] = min(c.rank, best.get(c.ids.tobytes(), c.rank))
    for c in ranked:
        c.rank = best[c.ids.tobytes()]
    return group


def _log_losses(spec: DataSpec, rows: sources.Rows, lost: ReadCounts, count: int) -> None:
    if lost.bad_rows:
        log.info("%s: %d bad rows dropped, first: %s", rows.name, lost.bad_rows, rows.dropped[0])
    if lost.long_prompts:
        log.info(
            "%s: %d of %d prompts dropped: longer than max_prompt_length %d",
            *(rows.name, lost.long_prompts, count, spec.max_prompt_length),
        )
    if lost.cut_completions:
        log.warning(
            "%s: %d of %d completions cut at max_completion_length %d; they teach no end token",
            *(rows.name, lost.cut_completions, lost.completions, spec.max_completion_length),
        )
    if lost.equal_completions:
        limit = f" up to max_completion_length {spec.max_completion_length}"
        log.warning(
            "%s: %d of %d comparisons dropped: the tokens of their completions are equal%s",
            *(rows.name, lost.equal_completions, count, limit if lost.cut_completions else ""),
        )


def split(groups: list[Group], count: int, name: str) -> tuple[list[Group], list[Group]]:
    """``groups`` without the last ``count``, and those, held out."""
    if count >= len(groups):
        raise DataError(
            f"{name}: holdout {count} leaves none of the {len(groups)} rows to train on"
        )
    return (groups[:-count], groups[-count:]) if count else (groups, [])
