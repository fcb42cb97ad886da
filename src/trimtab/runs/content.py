"""What an input of a run holds, as hashes: rows, files, folders, hub repositories.

A file of up to 64 MiB is hashed whole. Of a larger one (weights) the size, both ends and 1,024 blocks in
between are hashed: training changes every block, and reading gigabytes at each start would be slow.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from trimtab.types import Row

_FULL = 64 * 2**20
_END = 2**20
_BLOCK, _BLOCKS = 4096, 1024
_MAX_ROWS = 10_000
"""Rows whose hashes are stored, to name the first that differs."""
_MAX_FILES = 1000
_ROW_DIGITS = 8
_RECORDS = ("stage.json", "findings.jsonl", "fingerprint.json", "tracker.json", "log")
_RECORD_STARTS = ("heartbeat", "run.log", "not-finite-")
_RECORD_ENDS = (".html", ".lock", ".sqlite", "-wal", "-shm", ".tmp")


class Content(BaseModel):
    """The content of one input."""

    kind: Literal["rows", "file", "folder", "hub", "code"]
    digest: str
    """SHA-256 of all of it, or the commit of a hub repository."""
    count: int = 0
    """Rows, or files."""
    rows: str = ""
    """The first 8 hex digits of the SHA-256 of each of the first 10,000 rows."""
    files: dict[str, str] = {}
    """Hash of each file, by its name in the folder."""

    def change(self, new: Content) -> str:
        """What differs in ``new``, in a few words; empty if nothing does."""
        if (self.kind, self.digest) == (new.kind, new.digest):
            return ""
        if self.kind == new.kind == "rows":
            pairs = zip(_row_digests(self.rows), _row_digests(new.rows), strict=False)
            common = min(self.count, new.count, _MAX_ROWS)
            row = next((i for i, (a, b) in enumerate(pairs, 1) if a != b), common + 1)
            where = f"in row {row}" if row <= _MAX_ROWS else f"after row {_MAX_ROWS:,}"
            return f"{self.count:,} rows -> {new.count:,} rows, first difference {where}"
        if self.kind == new.kind == "folder":
            names = sorted(
                name
                for name in self.files.keys() | new.files.keys()
                if self.files.get(name) != new.files.get(name)
            )
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            return f"other content of {', '.join(names[:5]) or 'the folder'}{more}"
        if self.kind == new.kind == "hub":
            return f"commit {self.digest[:12]} -> {new.digest[:12]}"
        if self.kind == new.kind:
            return "the code has changed" if self.kind == "code" else "the file has changed"
        return f"a {self.kind} -> a {new.kind}"


def _row_digests(text: str) -> list[str]:
    return [text[i : i + _ROW_DIGITS] for i in range(0, len(text), _ROW_DIGITS)]


def rows_content(rows: Iterable[Row]) -> Content:
    """The content of a dataset; the order of columns does not matter."""
    total = hashlib.sha256()
    digests: list[str] = []
    count = 0
    for row in rows:
        text = json.dumps(row, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()
        total.update(digest.encode())
        count += 1
        if count <= _MAX_ROWS:
            digests.append(digest[:_ROW_DIGITS])
    return Content(kind="rows", digest=total.hexdigest(), count=count, rows="".join(digests))


def file_digest(path: Path) -> str:
    """SHA-256 of a file, of a large one its size and a sample of it."""
    stat = path.stat()
    return _digest(path.resolve(), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)  # stages of a recipe read the same files
def _digest(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as handle:
        if size <= _FULL:
            return hashlib.file_digest(handle, "sha256").hexdigest()
        digest = hashlib.sha256(f"{size} ".encode())
        digest.update(handle.read(_END))
        for i in range(_BLOCKS):
            handle.seek(_END + (size - 2 * _END) * i // _BLOCKS)
            digest.update(handle.read(_BLOCK))
        handle.seek(size - _END)
        digest.update(handle.read())
        return digest.hexdigest()


def _files(folder: Path, *, inner: bool) -> Iterable[Path]:
    """The files that are content: neither hidden, nor checkpoints, nor what a run notes about itself."""
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(
            f for f in folders if inner and f[0] != "." and not f.startswith("checkpoint")
        )
        for name in sorted(names):
            if (
                name[0] != "."
                and name not in _RECORDS
                and not name.startswith(_RECORD_STARTS)
                and not name.endswith(_RECORD_ENDS)
            ):
                yield Path(place) / name


def path_content(path: Path, *, inner: bool = True) -> Content:
    """The content of a file or a folder, with ``inner`` also of the folders in it."""
    if path.is_file():
        return Content(kind="file", digest=file_digest(path))
    files: dict[str, str] = {}
    total = hashlib.sha256()
    count = 0
    for file in _files(path, inner=inner):
        try:
            digest = file_digest(file)
        except OSError:  # a broken link, or not readable: whoever needs it reports it
            continue
        name = file.relative_to(path).as_posix()
        total.update(f"{name} {digest} ".encode())
        count += 1
        if count <= _MAX_FILES:
            files[name] = digest[:16]
    return Content(kind="folder", digest=total.hexdigest(), count=count, files=files)


def model_content(path_or_id: str) -> Content | None:
    """The content of a model or tokenizer: of its folder or file, or the commit of a hub repository.

    None if there is neither; loading it reports that.
    """
    path = Path(path_or_id)
    if path.exists():
        return _with_base(path_content(path, inner=False), path)
    from huggingface_hub import hf_hub_download

    for name in ("config.json", "adapter_config.json"):
        try:
            folder = Path(hf_hub_download(path_or_id, name)).parent
        except (OSError, ValueError):  # not there, not reachable, or no valid id
            continue
        return _with_base(Content(kind="hub", digest=folder.name), folder)
    return None


def _with_base(content: Content, folder: Path) -> Content:
    """``content``, with that of the base model where the folder holds an adapter."""
    try:
        values = json.loads((folder / "adapter_config.json").read_bytes())
        name = str(values["base_model_name_or_path"])
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ):  # no adapter, or loading it reports the fault
        return content
    base = model_content(name) if Path(name) != folder else None
    if base is None:
        return content
    digest = hashlib.sha256(f"{content.digest} {base.digest}".encode()).hexdigest()
    files = {**content.files, f"base {name}": base.digest[:16]} if content.files else {}
    return content.model_copy(update={"digest": digest, "files": files})
