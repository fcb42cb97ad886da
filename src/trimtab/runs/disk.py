"""Room on the disk: checked before something is written, so that the error says how much is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

from trimtab.errors import DiskSpaceError

MARGIN = 1 << 20
"""Bytes that must stay free: names, manifests and metrics need some too."""


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write at ``folder``, which need not exist yet."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def require_space(folder: Path, size: int, what: str) -> None:
    """Check that ``size`` bytes fit on the disk of ``folder``.

    Args:
        what: What is to be written, as the error names it: "the checkpoint of step 7".

    Raises:
        DiskSpaceError: they do not; it names the size, the room, and how much is missing.
    """
    free = free_bytes(folder)
    missing = size + MARGIN - free
    if missing > 0:
        raise DiskSpaceError(
            f"{folder}: {what} needs {mib(size)} and {mib(free)} are free: {mib(missing)} are missing. "
            "Nothing was written, and what is there is intact: free some space and resume."
        )


def mib(size: float) -> str:
    """Bytes as text.

    >>> mib(3 << 20), mib(100)
    ('3.0 MiB', '0.1 MiB')
    """
    rounded = max(size / 2**20, 0.1)
    return f"{rounded:,.1f} MiB" if rounded < 100 else f"{rounded:,.0f} MiB"
