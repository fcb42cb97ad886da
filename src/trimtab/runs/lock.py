"""One process per run folder.

The operating system holds the lock, so it ends with its process, however that ends. It belongs to the open
file (``flock``) and not to the process: a lock of the process would end as soon as any code of it, such as
one that copies the folder, opens and closes the file. Forked children close theirs, so that none outlives
its owner with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Generator
from pathlib import Path
from typing import IO

from trimtab.errors import ConfigError

LOCK = ".lock"
_HELD: dict[Path, IO[str]] = {}
"""Locks of this process, which may open a folder twice."""


def lock(folder: Path) -> None:
    """Lock a run folder for this process, until ``unlock`` or its end.

    Raises:
        ConfigError: another process has it; its id, host and start are named.
    """
    place = folder.resolve()
    if place in _HELD:
        return
    handle = (place / LOCK).open("a+", encoding="utf-8")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if not isinstance(error, BlockingIOError | PermissionError):
            return  # a file system without locks
        handle.seek(0)
        holder = handle.read().strip() or "unknown"
        handle.close()
        raise ConfigError(
            f"{folder}: another process is writing to this run folder ({holder}); wait until it ends, "
            "stop it, or choose another --out"
        ) from None
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    handle.truncate(0)
    handle.write(f"process {os.getpid()} on {socket.gethostname()}, since {started}\n")
    handle.flush()
    _HELD[place] = handle


def unlock(folder: Path) -> None:
    """Let other processes open the folder."""
    handle = _HELD.pop(folder.resolve(), None)
    if handle is not None:
        handle.close()


@contextlib.contextmanager
def waiting_lock(file: Path) -> Generator[None]:
    """Lock ``file``, which is created, for a block; waits while another process has it."""
    with file.open("a", encoding="utf-8") as handle:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _forget() -> None:
    """In a forked child: close the inherited files, which leaves the parent's locks alone."""
    for handle in _HELD.values():
        handle.close()
    _HELD.clear()


os.register_at_fork(after_in_child=_forget)
