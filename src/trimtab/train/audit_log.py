"""The files of a run's audit, which rank 0 alone reads and writes: audit.jsonl and actions.jsonl."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from trimtab import ranks
from trimtab.audit.gold_audit import AuditedRollout, append_audit, read_audit, write_audit
from trimtab.runs import fs, json_lines, to_json, write_atomic
from trimtab.types import Row

ACTIONS = "actions.jsonl"


def rewind(out: Path, step: int) -> list[AuditedRollout]:
    """Drop the lines of ``step`` and later from both files; the audited rollouts before it."""

    def drop() -> list[Row]:
        audited = [r for r in read_audit(out) if r.step < step]
        write_audit(out, audited)
        _drop_lines(out / ACTIONS, step)
        return [r.model_dump() for r in audited]

    return [AuditedRollout.model_validate(row) for row in ranks.current().on_main(drop)]


def append(out: Path, rollouts: Sequence[AuditedRollout]) -> None:
    """Add audited rollouts."""
    if ranks.current().is_main:
        append_audit(out, rollouts)


def append_action(out: Path, record: Row) -> None:
    """Add an action."""
    if ranks.current().is_main:
        with fs.open(out / ACTIONS, "ab") as handle:
            fs.write(handle, (to_json(record) + "\n").encode())


def _drop_lines(path: Path, step: int) -> None:
    """Drop the lines of ``step`` and later from a JSON lines file: a resumed run writes them again."""
    if path.is_file():
        data = path.read_bytes()
        complete = json_lines(data[: data.rfind(b"\n") + 1])  # a crash may have cut the last line
        earlier = [x + b"\n" for _, x in complete if (json.loads(x).get("step") or 0) < step]
        if len(b"".join(earlier)) < len(data):
            write_atomic(path, b"".join(earlier))
