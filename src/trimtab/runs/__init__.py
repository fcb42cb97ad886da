"""The run folder: where every stage writes and every reader meets it.

``config.yaml`` (resolved, secrets redacted), ``metrics.jsonl``, ``samples/step-*.parquet``,
``findings.jsonl``, ``checkpoints/``, ``model/`` and ``summary.json``.
"""

from trimtab.runs.files import Files, fs, json_lines, write_atomic
from trimtab.runs.folder import (
    Run,
    read_findings,
    read_metrics,
    read_object,
    read_samples,
    read_summary,
    to_json,
)
from trimtab.runs.redact import HIDDEN, redact
from trimtab.runs.trackers import Tracker, make_tracker

__all__ = [
    "HIDDEN",
    "Files",
    "Run",
    "Tracker",
    "fs",
    "json_lines",
    "make_tracker",
    "read_findings",
    "read_metrics",
    "read_object",
    "read_samples",
    "read_summary",
    "redact",
    "to_json",
    "write_atomic",
]
