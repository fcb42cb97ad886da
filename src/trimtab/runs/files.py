"""File operations that may fail or be lost, behind one small door."""

from __future__ import annotations

import codecs
import json
import os
import shutil
from pathlib import Path
from typing import Any, BinaryIO, cast

from trimtab.errors import DataError


class Files:
    """File operations whose failure or loss matters; tests replace methods to fail the k-th call."""

    def open(self, path: Path, mode: str) -> BinaryIO:
        """Open a binary file for writing ("wb") or appending ("ab")."""
        return cast(BinaryIO, path.open(mode))

    def write(self, handle: BinaryIO, data: bytes | memoryview) -> None:
        """Write all of ``data`` and hand it to the operating system."""
        handle.write(data)
        handle.flush()

    def fsync(self, path: Path) -> None:
        """Make a file's bytes, or a folder's names, durable."""
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)

    def rename(self, old: Path, new: Path) -> None:
        """Move ``old`` to ``new``, replacing a file of that name at once."""
        old.replace(new)

    def truncate(self, path: Path, size: int) -> None:
        """Cut a file to its first ``size`` bytes."""
        os.truncate(path, size)

    def mkdir(self, path: Path) -> None:
        """Make one folder."""
        path.mkdir()

    def remove(self, path: Path) -> None:
        """Remove a file or a whole folder."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


fs = Files()


def json_lines(data: bytes) -> list[tuple[int, bytes]]:
    """The lines of a JSON lines file that are not blank, with their numbers from 1.

    Only a line feed ends a line: ``str.splitlines`` also splits at U+0085, U+2028 and U+2029, which
    may stand inside a JSON string. A byte order mark in front is removed.
    """
    lines = data.removeprefix(codecs.BOM_UTF8).split(b"\n")
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` so that a reader, or a crash, sees the old or the new whole.

    Its folder is created where there is none.

    Raises:
        OSError: when the disk refuses; the old file is then untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with fs.open(temporary, "wb") as handle:
            fs.write(handle, data)
        fs.fsync(temporary)
        fs.rename(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    fs.fsync(path.parent)


def read_object(file: Path) -> dict[str, Any]:
    """A file that holds one JSON object; empty when there is none.

    Raises:
        DataError: the file is not a JSON object.
    """
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{file}: not JSON ({error}); remove it and run again") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: not a JSON object; remove it and run again")
    return cast(dict[str, Any], content)
