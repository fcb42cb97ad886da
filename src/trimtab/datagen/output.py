"""Files that the commands of this package write: rows, and a summary in the output folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.runs import to_json, write_atomic
from trimtab.types import Row


def write_summary(out: Path, summary: Mapping[str, object]) -> None:
    """Write ``out``/summary.json, creating the folder."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "summary.json", to_json(summary, indent=1).encode())


def summary_line(summary: Mapping[str, Any]) -> str:
    """The numbers of a summary on one line."""
    return ", ".join(f"{v:.4g} {k.replace('_', ' ')}" for k, v in summary.items()) or "done"


def jsonl(rows: Sequence[Row]) -> bytes:
    """Rows as JSON lines."""
    return "".join(json.dumps(r) + "\n" for r in rows).encode()
