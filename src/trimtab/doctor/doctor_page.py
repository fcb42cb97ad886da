"""The doctor's page: one self-contained file, every text of the run escaped."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from trimtab.doctor.alarms import gold
from trimtab.doctor.diagnosis import ALARMS, Diagnosis
from trimtab.doctor.evidence import Evidence, read
from trimtab.doctor.finding import Finding
from trimtab.report.charts import Chart, Line, line_chart, number
from trimtab.report.metric_charts import STEP, curves
from trimtab.report.sections import Answer, Pick, Section, Table, Tile, Verdict, render
from trimtab.runs import write_atomic

TIERS = {"T0": "curves and facts of the data", "T1": "rollouts and probes", "T2": "the gold audit"}
TONES = {"real": "good", "not proven": "fair", "not real": "bad", "broken": "bad"}
HEADS = {
    "real": "Yes: what is wanted rose with the reward",
    "not real": "No: the reward is being had by something else",
    "broken": "It cannot be: the training is broken",
    "not proven": "Nothing wrong was found; that is not yet a proof",
}


def write(folder: str | Path, diagnosis: Diagnosis) -> Path:
    """Write ``doctor.html`` into the run folder."""
    evidence = read(folder)
    sections = [
        _first(diagnosis, evidence),
        Section("Gold and proxy", _GOLD, charts=[c for c in _golden(evidence) if c]),
        *(_finding(f) for f in diagnosis.findings),
        Section(
            "Curves", "What was recorded, step by step.", charts=curves(evidence.rows, rest=False)
        ),
        _checks(diagnosis),
    ]
    title = "Is the reward real?"
    page = render(sections, title, f"trimtab doctor, run {Path(folder).resolve().name}")
    path = Path(folder) / "doctor.html"
    write_atomic(path, page.encode())
    return path


_GOLD = (
    "The audit holds a few rollouts against what is really wanted. Reward hacking shows as a proxy that "
    "climbs with distance from the start while gold bends down."
)


def _first(d: Diagnosis, e: Evidence) -> Section:
    steps = number(float(e.rows[-1]["step"])) if e.rows else "0"
    tiles = [
        Tile("Findings", str(len(d.findings)), "of 18 alarms"),
        Tile("Asked and clean", str(len(d.clean)), "alarms"),
        Tile("Not checked", str(len(d.unchecked)), "see the last table"),
        Tile("Gold audit", str(d.audited), "rollouts with a gold score"),
        Tile("Steps", steps, f"of stage {d.stage or 'unknown'}"),
    ]
    rows = [
        (
            f"{f.rank}. {f.title}", "from the start" if f.step is None else f"step {f.step}",
            f.cause, f.tier,
        )
        for f in d.findings
    ]  # fmt: skip
    tables = (
        [Table(("What is wrong, likeliest cause first", "Since", "Cause", "Rests on"), rows)]
        if rows
        else []
    )
    said = [Verdict(HEADS[d.verdict], d.line, TONES[d.verdict])]
    if d.handed_over:
        said.append(Verdict("What was handed over", d.handed_over, "fair"))
    return Section("", "", said, tiles, tables=tables)


def _finding(f: Finding) -> Section:
    since = f"since step {f.step}" if f.step is not None else "from the start"
    others = f" Other causes: {'; '.join(f.others)}." if f.others else ""
    verdicts = [
        Verdict(
            f"{f.figure[0].upper()}{f.figure[1:]}: {number(f.number)} (limit {number(f.limit)})",
            f.message,
            "bad",
        ),
        Verdict("Likeliest cause", f"{f.cause}.{others}", "fair"),
        Verdict("What to do", f.remedy, "good", f.change),
    ]
    picks = [
        Pick(
            x.prompt,
            [Answer("Answer", x.answer, x.note)],
            f"Step {x.step}" if x.step is not None else "From the data",
        )
        for x in f.examples
    ]
    lead = f"Alarm {f.alarm}, {f.name}, {since}. Rests on {TIERS[f.tier]} ({f.tier})."
    return Section(f"{f.rank}. {f.title}", lead, verdicts, picks=picks)


def _golden(e: Evidence) -> list[Chart | None]:
    by: dict[int, list[tuple[float, float, float | None]]] = {}
    for a in e.audit:
        by.setdefault(a.step, []).append((a.proxy, a.gold, a.kl))
    if len(by) < 2:
        return []
    at = sorted(by)
    proxy = np.array([np.mean([p for p, _, _ in by[s]]) for s in at])
    golds = np.array([np.mean([g for _, g, _ in by[s]]) for s in at])
    steps = [float(s) for s in at]
    scale = float(np.ptp(golds)) / max(float(np.ptp(proxy)), 1e-9)
    shrunk = [float(v) for v in golds[0] + (proxy - proxy[0]) * min(1.0, scale)]
    charts = [
        line_chart(
            "Gold and proxy over training",
            [Line("Gold, audited", steps, golds.tolist(), 0), Line("Proxy, rescaled", steps, shrunk, 1)],
            STEP, "Gold score", "They should climb together; a gap that opens is reward paid for something else.",
        )
    ]  # fmt: skip
    fit = gold.fitted(e)
    kls = [np.mean([k for _, _, k in by[s] if k is not None] or [math.nan]) for s in at]
    d = [math.sqrt(max(0.0, float(k))) for k in kls if math.isfinite(k)]
    if fit is not None and len(d) == len(at):
        start = float(golds[0])
        grid = np.linspace(0, max(d), 60)
        order = np.argsort(d)
        charts.append(
            line_chart(
                "Gold against distance",
                [
                    Line("Gold, audited", [d[i] for i in order], [float(golds[i]) for i in order], 0),
                    Line("Fit d(α − β ln d)", grid.tolist(), [start + fit(float(x)) for x in grid], 2),
                ],
                "Distance √KL (√nats)", "Gold score",
                f"Gold peaks at √KL {number(fit.peak)}; beyond it, more distance makes answers worse."
                if math.isfinite(fit.peak) and fit.peak <= 1.5 * max(d)
                else "Within the distance travelled the fit has no peak.",
            )
        )  # fmt: skip
    return charts


def _checks(d: Diagnosis) -> Section:
    found = {f.name: f for f in d.findings}
    rows: list[tuple[str, str, str]] = []
    for alarm in ALARMS:
        said: tuple[str, str]
        if alarm.name in found:
            f = found[alarm.name]
            said = ("rings", f"{f.tier}, {number(f.number)} against {number(f.limit)}")
        elif alarm.name in d.clean:
            said = ("clean", "")
        else:
            said = ("not checked", d.unchecked.get(alarm.name, ""))
        rows.append((f"{alarm.number}. {alarm.title}", said[0], said[1]))
    return Section(
        "What was checked and what was not", "An alarm that was not asked says nothing about the run.",
        tables=[Table(("Alarm", "State", "Why"), rows)],
    )  # fmt: skip
