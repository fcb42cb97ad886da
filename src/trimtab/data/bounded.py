"""Reading files of unknown size: lines one by one, and no more than a limit of bytes.

A compressed file of a megabyte may hold gigabytes, and a line may never end.
"""

from __future__ import annotations

import codecs
import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from trimtab.errors import ConfigError, DataError

ROW_KEY = "TRIMTAB_MAX_ROW_MB"
"""Environment variable with the limit of one row, in MB."""
FILE_KEY = "TRIMTAB_MAX_FILE_GB"
"""Environment variable with the limit of one file after decompression, in GB of memory: bytes, and
``OBJECT_BYTES`` for each object and list in it."""
ROW_MB = 64.0
FILE_GB = 4.0
OBJECT_BYTES = 500
"""What a row, object or list takes in memory besides its text."""
FIELD_BYTES = 60
"""What a field of a row, or a blank line, counts besides its text."""
EXPANSION = 100
"""A compressed file over ``EXPANSION_FROM`` bytes may not be more than this many times its size, unless
``FILE_KEY`` is set: text compresses three to twenty times."""
EXPANSION_FROM = 64_000_000


def _setting(key: str, default: float) -> float:
    text = os.environ.get(key)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ConfigError(f"{key}: {text!r} is not a positive number")
    return value


def max_row_bytes() -> int:
    """Limit of one row.

    Raises:
        ConfigError: ``ROW_KEY`` is no positive number.
    """
    return int(_setting(ROW_KEY, ROW_MB) * 1e6)


def max_file_bytes(path: Path) -> int:
    """Limit of ``path`` after decompression.

    Raises:
        ConfigError: ``FILE_KEY`` is no positive number.
    """
    limit = int(_setting(FILE_KEY, FILE_GB) * 1e9)
    if path.suffix == ".gz" and FILE_KEY not in os.environ:
        return min(limit, max(EXPANSION_FROM, EXPANSION * path.stat().st_size))
    return limit


def check_size(path: Path, size: int) -> None:
    """Refuse a file that takes ``size`` bytes of memory.

    Raises:
        DataError: this is more than the limit.
        ConfigError: ``FILE_KEY`` is no positive number.
    """
    limit = max_file_bytes(path)
    if size > limit:
        packed = " after decompression" if path.suffix == ".gz" else ""
        raise DataError(
            f"{path}: takes more than {limit / 1e9:g} GB of memory{packed}; split it, or raise the limit if "
            f"you trust it (environment variable {FILE_KEY}, in GB)"
        )


def json_size(text: bytes) -> int:
    """The memory, in bytes, that a JSON text takes once it is read."""
    return len(text) + OBJECT_BYTES * (text.count(b"{") + text.count(b"["))


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb"))


def read_bytes(path: Path) -> bytes:
    """All bytes of a file, decompressed, without a byte order mark.

    Raises:
        DataError: it holds more than the limit.
        OSError: it cannot be read.
        EOFError, zlib.error: it is no complete gzip file.
    """
    if path.suffix != ".gz":
        check_size(path, path.stat().st_size)
    parts: list[bytes] = []
    size = 0
    with _open(path) as stream:
        while part := stream.read(1 << 24):
            size += len(part)
            check_size(path, size)
            parts.append(part)
    return b"".join(parts).removeprefix(codecs.BOM_UTF8)


def read_lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """The lines of a file that are not blank, with their numbers from 1; None for one over the limit.

    Only a line feed ends a line. A byte order mark in front is removed.

    Raises:
        DataError: the file holds more than the limit.
        OSError: it cannot be read.
        EOFError, zlib.error: it is no complete gzip file.
    """
    longest = max_row_bytes()
    size = number = 0
    with _open(path) as stream:
        while line := stream.readline(longest + 1):
            size += FIELD_BYTES + json_size(line)
            number += 1
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            over = len(line) > longest and not line.endswith(b"\n")
            if over:
                yield number, None
                while rest := stream.readline(1 << 24):
                    size += len(rest)
                    check_size(path, size)
                    if rest.endswith(b"\n"):
                        break
            if number % 256 == 0 or len(line) > 1 << 20:
                check_size(path, size)
            if not over and line.strip():
                yield number, line.removesuffix(b"\n")
    check_size(path, size)


def row_too_long() -> str:
    """What is wrong with a row over the limit."""
    return (
        f"is longer than {max_row_bytes() / 1e6:g} MB; shorten it, or raise the limit if you trust it "
        f"(environment variable {ROW_KEY}, in MB)"
    )
