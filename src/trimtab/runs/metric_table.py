"""``metrics.jsonl`` as columns, for runs of millions of steps.

The file is read in blocks. The lines of a block that have the same keys in the same order, as the writer of
a run repeats them, are parsed together as comma-separated numbers; any other block is parsed line by line
as JSON. Both give the same columns.
"""

from __future__ import annotations

import codecs
import io
import json
import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pc

from trimtab.errors import DataError
from trimtab.types import Row

Array = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

BLOCK_BYTES = 4 << 20
_NOT_FINITE = ["null", "NaN", "Infinity", "-Infinity"]


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows with the same metrics."""

    places: Places
    """Positions of the rows in the table [n]."""
    names: tuple[str, ...]
    values: Array
    """[names, n]; NaN where a value was recorded that is not finite."""


class MetricTable:
    """The metrics of a run by name, in order of step. Only numbers count; text and lists are left out.

    A value that was recorded as null, NaN or infinite is NaN. Rows without a number as ``step`` are dropped.

    >>> table = MetricTable.of([{"step": 2, "loss": None}, {"step": 1, "loss": 0.5, "lr": 1}])
    >>> table.series("loss")
    (array([1., 2.]), array([0.5, nan]))
    >>> sorted(table.names), len(table)
    (['loss', 'lr', 'step'], 2)
    """

    def __init__(self, parts: Sequence[_Part] = ()) -> None:
        self._parts = [p for p in parts if "step" in p.names]

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> MetricTable:
        """The table of rows in memory."""
        return cls(_parts_of_rows(list(rows), 0))

    @classmethod
    def read(cls, run: str | Path) -> MetricTable:
        """The table of ``metrics.jsonl`` in a run folder; a torn last line is left out.

        Raises:
            DataError: a line in the middle is not a JSON object; its number is named.
        """
        path = Path(run) / "metrics.jsonl"
        parts: list[_Part] = []
        row = number = 0
        for block, is_last in _blocks(path):
            lines = block.split(b"\n")
            rows = sum(1 for line in lines if line.strip())
            new = _uniform(block, row, rows)
            if new is None:
                new = _mixed([line for line in lines if line.strip()], row)
            if new is None:
                objects = _objects(path, lines, number, is_last)
                rows, new = len(objects), _parts_of_rows(objects, row)
            parts += new
            row += rows
            number += len(lines) - 1
        return cls(parts)

    def __len__(self) -> int:
        return len(self.steps)

    @cached_property
    def names(self) -> frozenset[str]:
        """Metrics that were recorded at least once, ``step`` and ``time`` included."""
        return frozenset(name for part in self._parts for name in part.names)

    @cached_property
    def steps(self) -> Array:
        """The steps of all rows, ascending."""
        return np.sort(self._raw("step")[1], kind="stable")

    def series(self, name: str) -> tuple[Array, Array]:
        """Steps [n], ascending, and values [n] of a metric where it was recorded; NaN where not finite."""
        steps, values = self._raw(name)
        if np.any(np.diff(steps) < 0):
            order = np.argsort(steps, kind="stable")
            steps, values = steps[order], values[order]
        return steps, values

    def without(self, prefixes: tuple[str, ...]) -> MetricTable:
        """The table without the metrics whose names start with one of ``prefixes``."""
        parts: list[_Part] = []
        for part in self._parts:
            keep = [i for i, name in enumerate(part.names) if not name.startswith(prefixes)]
            names = tuple(part.names[i] for i in keep)
            parts.append(_Part(part.places, names, part.values[keep]))
        return MetricTable(parts)

    def _raw(self, name: str) -> tuple[Array, Array]:
        """Steps and values of a metric in the order of the file, without rows that have no step."""
        columns = [
            (p.places, p.values[p.names.index("step")], p.values[p.names.index(name)])
            for p in self._parts
            if name in p.names
        ]
        if not columns:
            return np.zeros(0), np.zeros(0)
        places, steps, values = (np.concatenate(c) for c in zip(*columns, strict=True))
        if np.any(np.diff(places) < 0):
            order = np.argsort(places, kind="stable")
            steps, values = steps[order], values[order]
        has_step = np.isfinite(steps)
        return (steps, values) if has_step.all() else (steps[has_step], values[has_step])


def _blocks(path: Path) -> Generator[tuple[bytes, bool]]:
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


def _uniform(block: bytes, row: int, rows: int) -> list[_Part] | None:
    """The only part of a block whose ``rows`` lines all have the same keys; None if they do not."""
    keys = block[: block.find(b"\n")].split(b'"')[1::2]
    if b"\\" in block or not keys or block.count(b'"') != 2 * len(keys) * rows:
        return None
    pieces = block.split(b'"')
    if pieces[1::2] != keys * rows:
        return None
    values = b"".join(pieces[2::2]).replace(b"}\n{: ", b"\n")
    return _numbers(keys, values, np.arange(row, row + rows))


def _mixed(lines: Sequence[bytes], row: int) -> list[_Part] | None:
    """One part for each set of keys among the lines; None if a line is not an object of numbers."""
    by_keys: dict[bytes, tuple[list[int], list[bytes]]] = {}
    for place, line in enumerate(lines, row):
        if b"\\" in line:
            return None
        pieces = line.split(b'"')
        places, values = by_keys.setdefault(b'"'.join(pieces[1::2]), ([], []))
        places.append(place)
        values.append(b"".join(pieces[2::2]))
    parts: list[_Part] = []
    for keys, (places, values) in by_keys.items():
        text = b"\n".join(v.removesuffix(b"}").removeprefix(b": ") for v in values)
        part = _numbers(keys.split(b'"'), text, np.array(places))
        if part is None or not all(v.endswith(b"}") for v in values):
            return None
        parts += part
    return parts


def _numbers(keys: Sequence[bytes], values: bytes, places: Places) -> list[_Part] | None:
    """A part from the text between the keys of its lines, ``: 1, : 2}``; None if it is not just numbers."""
    if len(set(keys)) < len(keys):
        return None
    text = values.removeprefix(b": ").rstrip(b"}\r\n").replace(b", : ", b",")
    try:
        names = tuple(key.decode() for key in keys)
        # No header and no inference: a field that is not a number, or a missing one, is an error.
        table = pc.read_csv(
            io.BytesIO(text),
            pc.ReadOptions(column_names=names, block_size=2 * BLOCK_BYTES),
            pc.ParseOptions(quote_char=False, ignore_empty_lines=False),
            pc.ConvertOptions(
                column_types=dict.fromkeys(names, pa.float64()), null_values=_NOT_FINITE
            ),
        )
    except (pa.ArrowException, UnicodeDecodeError):
        return None
    if table.num_rows != len(places):
        return None
    out = np.empty((len(names), len(places)))
    for i, column in enumerate(table.columns):
        out[i] = column.to_numpy()
    out[np.isinf(out)] = np.nan
    return [_Part(places, names, out)]


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


def _parts_of_rows(rows: Sequence[Mapping[str, Any]], first: int) -> list[_Part]:
    """One part for each set of metrics among the rows."""
    by_names: dict[tuple[str, ...], tuple[list[int], list[list[float]]]] = {}
    for place, row in enumerate(rows, first):
        numbers = {k: _number(v) for k, v in row.items() if v is None or _is_number(v)}
        places, values = by_names.setdefault(tuple(numbers), ([], []))
        places.append(place)
        values.append(list(numbers.values()))
    return [
        _Part(np.array(places), names, np.array(values).T)
        for names, (places, values) in by_names.items()
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _number(value: float | None) -> float:
    try:
        number = math.nan if value is None else float(value)
    except OverflowError:
        return math.nan
    return number if math.isfinite(number) else math.nan
