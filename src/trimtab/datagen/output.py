"""What every command of this package writes: a summary in its output folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trimtab.runs import to_json, write_atomic


def write_summary(out: Path, summary: Mapping[str, object]) -> None:
    """Write ``out``/summary.json, creating the folder."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "summary.json", to_json(summary, indent=1).encode())
