"""The end of a JSON lines file, read and cut without reading the rest of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from pathlib import Path
from typing import cast

from trimtab.runs.files import fs
from trimtab.types import Row

_BLOCK = 64 << 10


def lines_from_end(path: Path) -> Generator[tuple[int, bytes]]:
    """The lines that end with a line feed, the last one first, each with the position where it begins."""
    if not path.exists():
        return
    with path.open("rb") as handle:
        start = handle.seek(0, 2)
        text = b""
        is_torn = True  # what follows the last line feed is no line yet
        while start > 0:
            size = min(_BLOCK, start)
            start -= size
            handle.seek(start)
            text = handle.read(size) + text
            while (at := text.rfind(b"\n", 0, len(text) - 1 + is_torn)) >= 0:
                if not is_torn:
                    yield start + at + 1, text[at + 1 : -1]
                text, is_torn = text[: at + 1], False
        if not is_torn:
            yield 0, text[:-1]


def last_row(path: Path) -> Row | None:
    """The last line that is a JSON object; None without one."""
    for _, line in lines_from_end(path):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            return cast(Row, row)
    return None


def cut_torn_line(path: Path) -> None:
    """Cut a line torn by a crash, so that the next append starts a line of its own."""
    if not path.exists():
        return
    end = next((start + len(line) + 1 for start, line in lines_from_end(path)), 0)
    if end < path.stat().st_size:
        fs.truncate(path, end)


def cut_rows(path: Path, is_late: Callable[[Row], bool]) -> None:
    """Cut the rows at the end for which ``is_late`` is true, up to the first for which it is not.

    Lines that are not JSON objects are cut with them.
    """
    end = None
    for start, line in lines_from_end(path):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and not is_late(cast(Row, row)):
            break
        end = start
    if end is not None:
        fs.truncate(path, end)
