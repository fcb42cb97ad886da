"""``trimtab first-ranked``: the completions that annotators ranked first, as demonstrations for sft."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from trimtab.config import Config
from trimtab.data import formats
from trimtab.data.formats import Example
from trimtab.datagen.output import write_summary
from trimtab.errors import DataError
from trimtab.feedback.comparisons import read_comparisons
from trimtab.runs import to_json, write_atomic
from trimtab.types import Row

log = logging.getLogger(__name__)


class FirstRankedConfig(Config):
    """Configuration of ``trimtab first-ranked``."""

    out: str = "runs/first_ranked"
    """Gets demonstrations.jsonl and summary.json."""
    data: str
    """Comparisons or a label folder: what ``trimtab reward`` and ``trimtab dpo`` read."""
    limit: int | None = Field(default=None, gt=0)
    """Use the first rows only."""
    ties: Literal["all", "skip"] = "all"
    """Of a row in which several completions are first: a demonstration for each, or none."""


@dataclass(frozen=True, slots=True)
class FirstRankedSummary:
    """summary.json of ``trimtab first-ranked``."""

    rows: int
    comparisons: int
    """Rows read."""
    undecided: int
    """Rows in which all completions tie; they give no demonstration."""
    tied: int
    """Other rows with several first completions."""
    repeated: int
    """Demonstrations that repeat an earlier one: the same prompt and completion."""


def main(config: FirstRankedConfig) -> FirstRankedSummary:
    """Write a demonstration for each first-ranked completion: ``prompt``, ``completion`` and the row's
    other columns, without the ranks.

    Raises:
        DataError: no row has a first completion.
    """
    c, out = config, Path(config.out)
    examples = formats.comparisons(read_comparisons(c.data, limit=c.limit))
    rows: dict[str, Row] = {}
    undecided = tied = repeated = 0
    for example in examples:
        first = first_ranked(example)
        if len(first) == len(example.completions):
            undecided += 1
            continue
        if len(first) > 1:
            tied += 1
            if c.ties == "skip":
                continue
        for completion in first:
            row = {**_columns(example), "prompt": example.prompt, "completion": completion}
            key = json.dumps([example.prompt, completion], sort_keys=True)
            repeated += key in rows
            rows.setdefault(key, row)
    if not rows:
        raise DataError(f"{c.data}: no row ranks one completion before another")
    out.mkdir(parents=True, exist_ok=True)
    text = "".join(to_json(row) + "\n" for row in rows.values())
    write_atomic(out / "demonstrations.jsonl", text.encode())
    summary = FirstRankedSummary(len(rows), len(examples), undecided, tied, repeated)
    write_summary(out, summary)
    log.info(
        f"first ranked: {summary.rows} demonstrations from {summary.comparisons} comparisons "
        f"({undecided} undecided, {repeated} repeated) -> {c.out}/demonstrations.jsonl"
    )
    return summary


def first_ranked(example: Example) -> list[Any]:
    """The completions of rank 0."""
    ranks = example.ranks or []
    return [x for x, rank in zip(example.completions, ranks, strict=True) if rank == 0]


_OF_LABELS = frozenset({"annotator", "who", "probs", "scores", "seconds", "item", "strength"})
"""Columns that describe a judgement, not the prompt."""


def _columns(example: Example) -> Row:
    return {
        k: v for k, v in example.extra.items() if k not in formats.COLUMNS and k not in _OF_LABELS
    }
