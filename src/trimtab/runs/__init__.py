"""The run folder: where every stage writes and every reader meets it.

``config.yaml`` (resolved, secrets redacted), ``metrics.jsonl``, ``samples/step-*.parquet``,
``findings.jsonl``, ``checkpoints/``, ``model/``, ``summary.json``, and ``fingerprint.json``: what the
results were made from.
"""

from trimtab.redact import HIDDEN, redact
from trimtab.runs.files import Files, fs, json_lines, read_object, write_atomic
from trimtab.runs.fingerprint import Fingerprint, read_fingerprint
from trimtab.runs.folder import (
    Run,
    SilentRun,
    read_findings,
    read_metrics,
    read_samples,
    read_summary,
)
from trimtab.runs.lock import unlock
from trimtab.runs.metric_table import MetricTable
from trimtab.runs.open_run import check_writable, claim, open_run, refusal, require_same, set_aside
from trimtab.runs.plain import to_json
from trimtab.runs.trackers import Tracker, make_tracker

__all__ = [
    "HIDDEN",
    "Files",
    "Fingerprint",
    "MetricTable",
    "Run",
    "SilentRun",
    "Tracker",
    "check_writable",
    "claim",
    "fs",
    "json_lines",
    "make_tracker",
    "open_run",
    "read_findings",
    "read_fingerprint",
    "read_metrics",
    "read_object",
    "read_samples",
    "read_summary",
    "redact",
    "refusal",
    "require_same",
    "set_aside",
    "to_json",
    "unlock",
    "write_atomic",
]
