"""Tell glibc malloc to keep the memory that a training step frees, or to return it."""

import ctypes
import gc
import os
from functools import lru_cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameter numbers in glibc's malloc.h."""
TRIM_BYTES = 2**31 - 1
"""Free bytes at the top of the heap before any are returned to the system: mallopt's maximum."""
MMAP_BYTES = 32 * 2**20
"""Blocks of this many bytes or more are mapped one by one: glibc's maximum."""


@lru_cache
def keep_freed_memory() -> bool:
    """Keep freed memory in this process, so that the next step does not page-fault for it again.

    By default glibc returns the top of the heap after each step and requests it again, one page
    fault per 4 kB. Peak memory does not change. Nothing is set where the user has set glibc's own
    environment variables.

    Returns:
        Whether the setting took effect; False on other C libraries.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)) and bool(
        mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)
    )


def return_freed_memory() -> None:
    """Give the memory that is free in this process back to the system, for example between two models.

    Without it a process keeps what its largest step needed (``keep_freed_memory``). Does nothing on
    C libraries other than glibc.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return
