"""What the C library does with memory that a step has freed."""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache

TRIM, MMAP = -1, -3
"""``M_TRIM_THRESHOLD`` and ``M_MMAP_THRESHOLD`` of glibc's malloc.h."""
KEPT = 2**31 - 1
"""Bytes free at the top of the heap before any are given back: the most that mallopt takes."""
LARGE = 32 * 2**20
"""Bytes from which a block is mapped by itself: the most that glibc takes, and where it ends by itself."""


@lru_cache
def keep_freed() -> bool:
    """Let this process keep what it frees, so that the next step need not have it zeroed again.

    A step's activations come and go; glibc gives the top of the heap back and asks for it anew, a
    page fault for each 4 kB. Peaks stay as they are. Whoever has set glibc's own variables is left alone.

    Returns:
        Whether it was set: false on other C libraries.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(MMAP, LARGE)) and bool(mallopt(TRIM, KEPT))
