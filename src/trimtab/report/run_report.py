"""The report of one training run, read from its folder alone."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from trimtab.errors import DataError
from trimtab.report.charts import number
from trimtab.report.metric_charts import curves, finite
from trimtab.report.sections import Answer, Pick, Section, Table, Tile, Verdict, render
from trimtab.runs import (
    MetricTable,
    read_findings,
    read_object,
    read_summary,
    sample_tables,
    write_atomic,
)

LONGEST = 1500


def clip(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"


def score_text(value: Any, label: str) -> str:
    return f"{label} {float(value):.2f}" if isinstance(value, (int, float)) else ""


def report_run(folder: str | Path) -> Path:
    """Write ``report.html`` of one training run from its metrics, samples, findings and summary.

    Raises:
        DataError: the folder is not there, or a file of it cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such run folder; give the folder that holds metrics.jsonl")
    metrics = MetricTable.read(folder)
    tiles = _last_figures(metrics)
    tiles += _lost_rows(read_object(folder / "facts.json").get("read"))
    summary = read_summary(folder)
    flat = flatten(summary)
    table = Table(("Figure", "Value"), flat)
    findings = [
        Verdict(
            str(f.get("title") or f.get("code") or f.get("name") or "Finding"),
            " ".join(str(f[k]) for k in ("message", "evidence", "advice", "remedy") if f.get(k)),
            {"critical": "bad", "error": "bad", "ok": "good"}.get(str(f.get("severity")), "fair"),
        )
        for f in read_findings(folder)
    ]
    audit = summary.get("audit")
    if isinstance(audit, Mapping) and "why" in audit:
        why = str(cast(Mapping[str, Any], audit)["why"])
        findings.append(Verdict("What was handed over", why, "fair"))
    page = render(
        [
            Section("", "The last recorded figures of this run.", findings, tiles),
            Section("Curves", "", charts=curves(metrics, rest=True)),
            Section("Answers", "From the last sampled step.", picks=_sample_picks(folder)),
            Section("Summary", "Every figure of summary.json.", tables=[table] if flat else []),
        ],
        f"Run {folder.resolve().name}",
    )
    path = folder / "report.html"
    write_atomic(path, page.encode())
    return path


def _last_figures(metrics: MetricTable) -> list[Tile]:
    """Steps, time, and the last value of what matters most."""
    if not len(metrics):
        return []
    tiles = [Tile("Steps", number(float(metrics.steps[-1])), "optimiser steps recorded")]
    _, times = metrics.series("time")
    if len(times):
        spent = number(float(times[-1] - times[0]))
        tiles.append(Tile("Time", f"{spent} s", "between first and last record"))
    for name in ("loss", "reward/mean", "reward/gold", "objective/kl", "completion/length"):
        _, values = finite(metrics, name)
        if len(values):
            first, last = number(float(values[0])), number(float(values[-1]))
            tiles.append(Tile(name, last, f"from {first} at the start"))
    return tiles


_LOSSES = {
    "cut_completions": ("Truncated completions", "longer than data.max_completion_length"),
    "equal_completions": ("Equal completions", "comparisons dropped: both have the same tokens"),
    "long_prompts": ("Long prompts", "rows dropped: over data.max_prompt_length"),
    "bad_rows": ("Bad rows", "rows dropped (data.strict: false)"),
}


def _lost_rows(counts: object) -> list[Tile]:
    """What reading the data lost, of ``facts.json``."""
    if not isinstance(counts, Mapping):
        return []
    lost = cast(Mapping[str, float], counts)
    return [
        Tile(title, number(lost[k]), note) for k, (title, note) in _LOSSES.items() if lost.get(k)
    ]


def flatten(values: Mapping[str, Any], path: str = "") -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    for name, value in values.items():
        full = f"{path}.{name}" if path else name
        if isinstance(value, Mapping):
            out += flatten(cast(Mapping[str, Any], value), full)
        else:
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            out.append((full, number(value) if is_number else clip(value)))
    return out


def _sample_picks(folder: Path, count: int = 3) -> list[Pick]:
    files = sample_tables.files(folder)
    if not files:
        return []
    rewards = sample_tables.column(files[-1], "reward")
    scored = [i for i, r in enumerate(rewards) if isinstance(r, (int, float))]
    scored.sort(key=lambda i: float(rewards[i]), reverse=True)
    chosen = choose(scored or range(sample_tables.count(files[-1])), count)
    rows = sample_tables.rows_at(files[-1], [i for _, i in chosen])
    return [
        Pick(
            clip(r.get("prompt")),
            [Answer("Answer", clip(r.get("completion")), score_text(r.get("reward"), "reward"))],
            why,
        )
        for (why, _), r in zip(chosen, rows, strict=True)
    ]


T = TypeVar("T")


def choose(ranked: Sequence[T], count: int) -> list[tuple[str, T]]:
    """Best, worst and random rows of a list ranked best first, none twice."""
    if len(ranked) <= 3 * count:
        return [("Sampled answer", row) for row in ranked]
    middle = random.Random(0).sample(range(count, len(ranked) - count), count)
    return [
        *(("Among the best", row) for row in ranked[:count]),
        *(("Among the worst", row) for row in ranked[-count:]),
        *(("Picked at random", ranked[i]) for i in sorted(middle)),
    ]
