"""Peak resident memory of this process, since its start or since a reset."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> bool:
    """Let ``peak_rss_mb`` start again from what is resident now; False where the system cannot.

    Linux can: "5" in /proc/self/clear_refs resets the high-water mark of the process (proc(5)).
    """
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def peak_rss_mb() -> float:
    """The most memory that was resident, MB, since the last reset or the start of the process."""
    try:
        for line in _STATUS.read_text().split("\n"):
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024
