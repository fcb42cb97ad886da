"""Sample tables read in part: a few rows, or one column, of a table of any size in bounded memory."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trimtab.errors import DataError
from trimtab.types import Row

BATCH_ROWS = 1024
"""Rows in memory at once."""


def files(run: str | Path) -> list[Path]:
    """The sample tables of a run folder in order of step."""
    return sorted((Path(run) / "samples").glob("step-*.parquet"))


def count(file: Path) -> int:
    """Rows of a table.

    Raises:
        DataError: the table cannot be read.
    """
    with _opened(file) as table:
        return table.metadata.num_rows


def column(file: Path, name: str) -> list[Any]:
    """The values of a column [rows]; empty where the table has no such column.

    Raises:
        DataError: the table cannot be read.
    """
    values: list[Any] = []
    with _opened(file) as table:
        if name in table.schema_arrow.names:
            for batch in table.iter_batches(BATCH_ROWS, columns=[name]):
                values += batch.column(0).to_pylist()
    return values


def rows_at(file: Path, places: Iterable[int]) -> list[Row]:
    """The rows at some places of a table, in the order of ``places``.

    Args:
        places: Positions from 0, each less than ``count``.

    Raises:
        DataError: the table cannot be read.
    """
    wanted = list(places)
    ordered = sorted(set(wanted))
    rows: dict[int, Row] = {}
    first = 0
    with _opened(file) as table:
        for batch in table.iter_batches(BATCH_ROWS) if ordered else ():
            inside = _between(ordered, first, first + batch.num_rows)
            part = batch.take(pa.array([i - first for i in inside], pa.int64())).to_pylist()
            rows.update(zip(inside, part, strict=True))
            first += batch.num_rows
            if len(rows) == len(ordered):
                break
    return [rows[i] for i in wanted]


def _between(ordered: Sequence[int], low: int, high: int) -> list[int]:
    return [i for i in ordered if low <= i < high]


@contextmanager
def _opened(file: Path) -> Generator[pq.ParquetFile]:
    try:
        # Buffered: a row group larger than memory is read in pieces.
        with pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False) as table:
            yield table
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a readable table ({error}); remove it") from None
