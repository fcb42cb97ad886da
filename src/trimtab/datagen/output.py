"""Files that the commands of this package write: rows, and a summary in the output folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.runs import to_json, write_atomic
from trimtab.types import Row

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def write_summary(out: Path, summary: DataclassInstance) -> None:
    """Write ``out``/summary.json without the fields that are None, creating the folder."""
    out.mkdir(parents=True, exist_ok=True)
    values = asdict(summary, dict_factory=_without_none)
    write_atomic(out / "summary.json", to_json(values, indent=1).encode())


def _without_none(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value for key, value in items if value is not None}


def jsonl(rows: Sequence[Row]) -> bytes:
    """Rows as JSON lines."""
    return "".join(json.dumps(r) + "\n" for r in rows).encode()
