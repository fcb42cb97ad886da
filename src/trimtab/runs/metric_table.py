"""``metrics.jsonl`` as columns, for runs of millions of steps.

The file is read in blocks by pyarrow's JSON reader. It has one meaning less than JSON: a null and a key that
is absent are the same to it, so nulls, which stand for values that are not finite, are renamed to NaN first.
A block that it refuses (a line that is no object, text where numbers were, a blank line) is read line by line.
"""

from __future__ import annotations

import codecs
import io
import json
import math
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.json as pj

from trimtab.errors import DataError
from trimtab.types import Row

Array = npt.NDArray[np.float64]
Places = npt.NDArray[np.int32]

BLOCK_BYTES = 1 << 20
THREADS = 2
"""pyarrow parses without Python's lock."""


@dataclass(frozen=True, slots=True)
class _Some:
    """A metric that not every row of a block has."""

    places: Places
    """Positions of its rows in the block [m], ascending."""
    values: Array
    """[m]"""


_Column = Array | float | _Some
"""The values of all rows [n], or the one value that all have, or those of some rows."""


@dataclass(frozen=True, slots=True)
class _Block:
    """Consecutive rows."""

    steps: Array
    """[n]; NaN where a row has no number as step."""
    columns: dict[str, _Column]
    """By name; NaN where a value was recorded that is not finite."""


class MetricTable:
    """The metrics of a run by name, in order of step. Only numbers count; text and lists are left out.

    A value that was recorded as null, NaN or infinite is NaN. Rows without a number as ``step`` are dropped.

    >>> table = MetricTable.of([{"step": 2, "loss": None}, {"step": 1, "loss": 0.5, "lr": 1}])
    >>> table.series("loss")
    (array([1., 2.]), array([0.5, nan]))
    >>> sorted(table.names), len(table)
    (['loss', 'lr', 'step'], 2)
    """

    def __init__(self, blocks: Sequence[_Block] = ()) -> None:
        self._blocks = list(blocks)

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> MetricTable:
        """The table of rows in memory."""
        return cls([_of_rows(list(rows))])

    @classmethod
    def read(cls, run: str | Path) -> MetricTable:
        """The table of ``metrics.jsonl`` in a run folder; a torn last line is left out.

        Raises:
            DataError: a line in the middle is not a JSON object; its number is named.
        """
        path = Path(run) / "metrics.jsonl"
        blocks: list[_Block] = []
        number = 0
        for text, is_last, block in _parsed(path):
            if block is None:
                block = _of_rows(_objects(path, text.split(b"\n"), number, is_last))
            blocks.append(block)
            number += text.count(b"\n")
        return cls(blocks)

    def __len__(self) -> int:
        return len(self.steps)

    @cached_property
    def names(self) -> frozenset[str]:
        """Metrics that were recorded at least once, ``step`` and ``time`` included."""
        return frozenset(name for block in self._blocks for name in block.columns)

    @cached_property
    def _steps(self) -> Array:
        """The steps of all rows in the order of the file."""
        return np.concatenate([np.zeros(0), *(block.steps for block in self._blocks)])

    @cached_property
    def _has_order(self) -> bool:
        """Whether every row has a step, and they ascend."""
        return bool(np.all(self._steps[1:] >= self._steps[:-1])) and not np.isnan(self._steps).any()

    @cached_property
    def steps(self) -> Array:
        """The steps of all rows, ascending."""
        return self._ordered(self._steps, self._steps)[0]

    def series(self, name: str) -> tuple[Array, Array]:
        """Steps [n], ascending, and values [n] of a metric where it was recorded; NaN where not finite."""
        steps: list[Array] = []
        values: list[Array] = []
        is_in_every_row = True
        for block in self._blocks:
            column = block.columns.get(name)
            if isinstance(column, _Some):
                is_in_every_row = False
                steps.append(block.steps[column.places])
                values.append(column.values)
            elif column is None:
                is_in_every_row = is_in_every_row and not len(block.steps)
            else:
                steps.append(block.steps)
                values.append(np.broadcast_to(np.asarray(column), block.steps.shape))
        if not values:
            return np.zeros(0), np.zeros(0)
        # The steps are shared where possible: they take as much memory as the values.
        return self._ordered(
            self._steps if is_in_every_row else np.concatenate(steps), np.concatenate(values)
        )

    def _ordered(self, steps: Array, values: Array) -> tuple[Array, Array]:
        if self._has_order:
            return steps, values
        has_step = ~np.isnan(steps)
        steps, values = steps[has_step], values[has_step]
        order = np.argsort(steps, kind="stable")
        return steps[order], values[order]

    def without(self, prefixes: tuple[str, ...]) -> MetricTable:
        """The table without the metrics whose names start with one of ``prefixes``."""
        return MetricTable(
            [
                _Block(b.steps, {k: v for k, v in b.columns.items() if not k.startswith(prefixes)})
                for b in self._blocks
            ]
        )


def _texts(path: Path) -> Generator[tuple[bytes, bool]]:
    """Whole lines of about ``BLOCK_BYTES``, and whether they are the last."""
    if not path.exists():
        return
    with path.open("rb") as handle:
        rest = handle.read(BLOCK_BYTES).removeprefix(codecs.BOM_UTF8)
        while more := handle.read(BLOCK_BYTES):
            end = rest.rfind(b"\n") + 1
            if end:
                yield rest[:end], False
            rest = rest[end:] + more
        yield rest, True


def _parsed(path: Path) -> Generator[tuple[bytes, bool, _Block | None]]:
    """What ``_texts`` yields with the block of each text, a few texts ahead."""
    with ThreadPoolExecutor(THREADS) as pool:
        pending: deque[tuple[bytes, bool, Future[_Block | None]]] = deque()
        for text, is_last in _texts(path):
            pending.append((text, is_last, pool.submit(_of_text, text)))
            if len(pending) > THREADS:
                text, is_last, future = pending.popleft()
                yield text, is_last, future.result()
        for text, is_last, future in pending:
            yield text, is_last, future.result()


def _of_text(text: bytes) -> _Block | None:
    """A block from lines of JSON; None where pyarrow does not read them as objects, one per line."""
    rows = text.count(b"\n") + (not text.endswith(b"\n"))
    if b"null" in text:
        text = text.replace(b": null", b": NaN").replace(b":null", b":NaN")
        if b"null" in text:  # in another form, or in a text
            return None
    try:
        # One block, and memory that goes back to the system.
        options = pj.ReadOptions(use_threads=False, block_size=len(text) + 1)
        table = pj.read_json(io.BytesIO(text), options, memory_pool=pa.system_memory_pool())
        columns = {
            name: _column(column)
            for name, column in zip(table.column_names, table.columns, strict=True)
            if _holds_numbers(column.type)
        }
    except (pa.ArrowException, UnicodeDecodeError):
        return None
    return _block(columns, rows) if table.num_rows == rows else None


def _holds_numbers(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)


def _column(column: pa.ChunkedArray) -> _Column:
    numbers = column.cast(pa.float64(), safe=False)
    if not numbers.null_count:
        return numbers.to_numpy()
    places = np.flatnonzero(numbers.is_valid().to_numpy())
    return _Some(places.astype(np.int32), numbers.drop_null().to_numpy())


def _block(columns: Mapping[str, _Column], rows: int) -> _Block:
    """A block of ``rows`` rows: infinite values become NaN, and equal values one."""
    steps = np.full(rows, np.nan)
    reduced: dict[str, _Column] = {}
    for name, column in columns.items():
        if isinstance(column, _Some):
            values = np.where(np.isfinite(column.values), column.values, np.nan)
            reduced[name] = _Some(column.places, values)
            if name == "step":
                steps[column.places] = values
        else:
            values = np.where(np.isfinite(column), column, np.nan)
            is_constant = bool(np.all(values == values[0]))
            reduced[name] = float(values[0]) if is_constant else values
            if name == "step":
                steps = values
    return _Block(steps, reduced)


def _objects(path: Path, lines: Sequence[bytes], before: int, is_last: bool) -> list[Row]:
    """The lines as JSON objects; ``before`` lines precede them."""
    rows: list[Row] = []
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        number = before + i + 1
        try:
            row = json.loads(line)
        except ValueError as error:
            if is_last and i == len(lines) - 1:  # torn by a crash: the line never ended
                break
            raise DataError(
                f"{path}, line {number}: not JSON ({error}); remove the line"
            ) from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: not a JSON object; remove the line")
        rows.append(cast(Row, row))
    return rows


def _of_rows(rows: Sequence[Mapping[str, Any]]) -> _Block:
    places: dict[str, list[int]] = {}
    values: dict[str, list[float]] = {}
    for place, row in enumerate(rows):
        for name, value in row.items():
            if value is None or isinstance(value, (int, float)):
                places.setdefault(name, []).append(place)
                values.setdefault(name, []).append(_number(value))
    columns: dict[str, _Column] = {}
    for name, at in places.items():
        numbers = np.array(values[name])
        is_full = len(at) == len(rows)
        columns[name] = numbers if is_full else _Some(np.array(at, np.int32), numbers)
    return _block(columns, len(rows))


def _number(value: float | None) -> float:
    try:
        number = math.nan if value is None else float(value)
    except OverflowError:
        return math.nan
    return number if math.isfinite(number) else math.nan
