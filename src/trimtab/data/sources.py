"""Readers of rows: local jsonl, json, parquet, csv and txt files (also .gz), or a hub dataset."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trimtab.data import bounded
from trimtab.errors import DataError
from trimtab.types import Row

_BATCH = 1024
"""Rows of a parquet file that are decoded at a time."""


@dataclass(slots=True)
class Rows:
    """Rows with their numbers in the file, for error messages."""

    name: str
    """The path or id as the user wrote it."""
    rows: list[tuple[int, Row]]
    """(row number from 1, columns)."""
    strict: bool = True
    """False: a bad row is dropped and reported, not an error."""
    dropped: list[str] = field(default_factory=list[str])
    """ "row N: why" of each row dropped."""
    format: str | None = None
    """The schema of the columns (``trimtab.data.schemas``); recognised if not given."""

    def bad(self, number: int, why: str) -> None:
        """Record a row that cannot be used; an error when strict.

        Raises:
            DataError: naming file and row, when strict.
        """
        if self.strict:
            raise DataError(f"{self.name}: row {number}: {why}")
        self.dropped.append(f"row {number}: {why}")


def read(
    path_or_id: str,
    *,
    split: str | None = None,
    subset: str | None = None,
    limit: int | None = None,
    strict: bool = True,
) -> Rows:
    """Rows of a local .jsonl, .json, .parquet, .csv or .txt (each also .gz), or of a hub data set.

    Args:
        path_or_id: The file, or the id on the hub.
        split: Of a hub data set; "train" if not given.
        subset: Of a hub data set (``datasets`` calls it a configuration).
        limit: Use the first rows only.
        strict: A bad row is an error, not dropped.

    Raises:
        DataError: the file is missing, empty, of an unknown kind, not UTF-8 or not well formed;
            the message names file and row.
    """
    path = Path(path_or_id).expanduser()
    rows = Rows(path_or_id, [], strict)
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name a file in it")
    if not path.is_file():
        # A hub id may hold a dot, so only the endings read here make a path of it.
        if path.suffix in (*READERS, ".gz") or path_or_id.startswith((".", "/", "~")):
            raise DataError(f"{path}: no such file")
        rows.rows = _hub(path_or_id, split, limit, subset)
    else:
        suffixes = [s for s in path.suffixes if s != ".gz"]
        kind = suffixes[-1] if suffixes else ""
        if kind not in READERS:
            raise DataError(
                f"{path}: kind {kind or '(none)'} is not read; use {', '.join(READERS)}, plain or .gz"
            )
        try:
            READERS[kind](path, rows)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(
                f"{path}: incomplete gzip file ({error}); download or compress it again"
            ) from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if limit is not None:
        rows.rows = rows.rows[:limit]
    if not rows.rows:
        raise DataError(
            f"{path_or_id}: holds no rows"
            + (f" ({len(rows.dropped)} dropped)" if rows.dropped else "")
        )
    return rows


def _lines(path: Path, rows: Rows) -> Iterator[tuple[int, str]]:
    for number, line in bounded.read_lines(path):
        if line is None:
            rows.bad(number, bounded.row_too_long())
            continue
        if b"\0" in line:
            rows.bad(number, "holds a NUL byte; the file is damaged or not text")
            continue
        try:
            text = line.decode("utf-8").rstrip("\r")
        except UnicodeDecodeError as error:
            rows.bad(number, f"not UTF-8 at byte {error.start} of the line; save the file as UTF-8")
            continue
        yield number, text


def _jsonl(path: Path, rows: Rows) -> None:
    for number, line in _lines(path, rows):
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            rows.bad(number, f"not valid JSON: {error}")
            continue
        if not isinstance(row, dict):
            rows.bad(number, f"expected an object of columns, got {type(row).__name__}")
            continue
        rows.rows.append((number, cast(Row, row)))


def _text(path: Path, rows: Rows) -> None:
    size = 0
    for number, line in _lines(path, rows):
        size += bounded.OBJECT_BYTES + len(line)
        if number % 256 == 0:
            bounded.check_size(path, size)
        rows.rows.append((number, {"text": line}))


def _json(path: Path, rows: Rows) -> None:
    data = bounded.read_bytes(path)
    bounded.check_size(path, bounded.json_size(data))
    try:
        values: Any = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{rows.name}: line {line}: not UTF-8 at byte {error.start} of the file; save it as UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(f"{rows.name}: line {error.lineno}: not valid JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{rows.name}: not valid JSON: {error}") from None
    if not isinstance(values, list):
        raise DataError(f"{rows.name}: expected a list of rows (one object per line is .jsonl)")
    for number, row in enumerate(cast(list[Any], values), 1):
        if isinstance(row, dict):
            rows.rows.append((number, cast(Row, row)))
        else:
            rows.bad(number, f"expected an object of columns, got {type(row).__name__}")


def _csv(path: Path, rows: Rows) -> None:
    data = bounded.read_bytes(path)
    fields = bounded.FIELD_BYTES * (data.count(b",") + data.count(b"\n"))
    bounded.check_size(path, len(data) + fields + bounded.OBJECT_BYTES * data.count(b"\n"))
    # The csv module's own limit on a field is 131,072 characters; a completion may be longer.
    csv.field_size_limit(max(csv.field_size_limit(), len(data)))
    # Bytes that are not UTF-8 are kept, so that the row that holds them can be named.
    text = data.decode("utf-8", "surrogateescape")
    try:
        for number, row in enumerate(csv.DictReader(io.StringIO(text, newline="")), 1):
            if None in row or any(v is None for v in row.values()):
                rows.bad(number, "has a different number of fields than the header")
            elif why := _damage(row):
                rows.bad(number, why)
            else:
                rows.rows.append((number, dict(row)))
    except csv.Error as error:
        raise DataError(f"{rows.name}: row {len(rows.rows) + 1}: not valid CSV: {error}") from None


def _damage(row: dict[str, str]) -> str:
    for name, value in row.items():
        if "\0" in value:
            return f"{name!r} holds a NUL byte; the file is damaged or not text"
        try:
            value.encode("utf-8", "surrogateescape").decode("utf-8")
        except UnicodeDecodeError as error:
            return f"not UTF-8 at byte {error.start} of {name!r}; save the file as UTF-8"
    return ""


def _parquet(path: Path, rows: Rows) -> None:
    try:
        file = pq.ParquetFile(io.BytesIO(bounded.read_bytes(path)))
        meta = file.metadata
        size = meta.num_rows * (bounded.OBJECT_BYTES + meta.num_columns * bounded.FIELD_BYTES)
        data = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
        bounded.check_size(path, size + data)
        first = 1
        for batch in file.iter_batches(_BATCH):
            size += sum(_expanded(column) for column in batch.columns)
            bounded.check_size(path, size)
            _add_batch(batch, first, rows)
            first += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{rows.name}: incomplete or invalid parquet file: {error}") from None


def _expanded(column: pa.Array) -> int:
    """The bytes of the values of a column, whose dictionary may hold one value for a million rows."""
    if not pa.types.is_dictionary(column.type) or len(column) == column.null_count:
        return column.nbytes
    words = cast(pa.DictionaryArray, column)
    lengths = [len(str(value)) for value in words.dictionary.to_pylist()]
    used = words.indices.drop_null().to_numpy()
    return int(np.asarray(lengths, np.int64)[used].sum())


def _add_batch(batch: pa.RecordBatch, first: int, rows: Rows) -> None:
    """Add the rows of a batch, whose first one has the number ``first``."""
    try:
        rows.rows += [(i, without_nulls(row)) for i, row in enumerate(batch.to_pylist(), first)]
    except UnicodeDecodeError:
        # Slow, but it finds the rows that are not UTF-8.
        for i in range(batch.num_rows):
            try:
                rows.rows.append((first + i, without_nulls(batch.slice(i, 1).to_pylist()[0])))
            except UnicodeDecodeError as error:
                rows.bad(
                    first + i, f"not UTF-8 at byte {error.start} of a column; write it as UTF-8"
                )


def _hub(
    name: str, split: str | None, limit: int | None, subset: str | None = None
) -> list[tuple[int, Row]]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        dataset: Any = load_dataset(name, subset, split=split or "train")
    except (OSError, ValueError, DatasetsError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(
            f"{name}: neither a local file nor a hub data set that can be reached ({why})"
        ) from None
    if limit is not None:
        dataset = dataset.select(range(min(limit, len(dataset))))
    return [(i, without_nulls(dict(row))) for i, row in enumerate(dataset, 1)]


_NESTED = frozenset(
    (
        "messages",
        "prompt",
        "completion",
        "completions",
        "chosen",
        "rejected",
        "tools",
        "chat_template_kwargs",
    )
)


def without_nulls(row: Row) -> Row:
    """A row of an Arrow table without the keys that a struct column fills in with null.

    All messages of such a column have the keys of any of them; null means that the row had none.
    A message's ``content`` stays, because null is one of its values.
    """

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            fields = cast(Row, value)
            return {k: clean(v) for k, v in fields.items() if v is not None or k == "content"}
        return [clean(v) for v in cast(list[Any], value)] if isinstance(value, list) else value

    return {k: clean(v) if k in _NESTED else v for k, v in row.items()}


READERS: dict[str, Callable[[Path, Rows], None]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
    ".csv": _csv,
    ".txt": _text,
}
