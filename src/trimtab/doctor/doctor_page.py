"""The doctor's page: one self-contained file, every text of the run escaped."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from trimtab.audit.gold_audit import AuditedRollout
from trimtab.doctor.alarms import all_alarms
from trimtab.doctor.alarms.over_optimised import fit_gold
from trimtab.doctor.diagnosis import Diagnosis
from trimtab.doctor.evidence import Evidence, read
from trimtab.doctor.finding import Finding
from trimtab.report.charts import Chart, Line, line_chart, number
from trimtab.report.metric_charts import STEP, curves
from trimtab.report.sections import Answer, Pick, Section, Table, Tile, Verdict, render
from trimtab.runs import write_atomic

TIERS = {"T0": "curves and facts of the data", "T1": "rollouts and probes", "T2": "the gold audit"}
TONES = {"real": "good", "not proven": "fair", "not real": "bad", "broken": "bad"}
HEADS = {
    "real": "Yes: the audited gold score rose with the reward",
    "not real": "No: the reward pays for something else",
    "broken": "It cannot be: the training is broken",
    "not proven": "Not proven: no alarm rings, but there is no audit that shows a rise",
}


def write_page(folder: str | Path, diagnosis: Diagnosis) -> Path:
    """Write ``doctor.html`` into the run folder."""
    evidence = read(folder)
    lead = (
        "The audit compares a few rollouts with the ground truth. If the reward is hacked, it keeps "
        "rising with the distance from the start while gold falls."
    )
    sections = [
        _overview(diagnosis, evidence),
        Section("Gold and reward", lead, charts=[c for c in _gold_charts(evidence) if c]),
        *(_finding(f, diagnosis.run) for f in diagnosis.findings),
        Section(
            "Curves", "The recorded metrics by step.", charts=curves(evidence.metrics, rest=False)
        ),
        _checks(diagnosis),
    ]
    title = "Is the reward real?"
    page = render(sections, title, f"trimtab doctor, run {Path(folder).resolve().name}")
    path = Path(folder) / "doctor.html"
    write_atomic(path, page.encode())
    return path


def _since(f: Finding) -> str:
    return "from the start" if f.step is None else f"since step {f.step}"


def _overview(d: Diagnosis, e: Evidence) -> Section:
    tiles = [
        Tile("Findings", str(len(d.findings)), f"of {len(all_alarms())} alarms"),
        Tile("Clean", str(len(d.clean)), "alarms checked without a finding"),
        Tile("Not checked", str(len(d.unchecked)), "see the last table"),
        Tile("Gold audit", str(d.audited), "rollouts with a gold score"),
        Tile("Steps", number(float(e.last_step)), f"of stage {d.stage or 'unknown'}"),
    ]
    head = ("What is wrong, the most likely root cause first", "Since", "Cause", "Evidence")
    rows = [(f"{f.rank}. {f.title}", _since(f), f.cause, f.tier) for f in d.findings]
    verdicts = [Verdict(HEADS[d.verdict], d.line, TONES[d.verdict])]
    if d.exported:
        verdicts.append(Verdict("Which policy was exported", d.exported, "fair"))
    return Section("", "", verdicts, tiles, tables=[Table(head, rows)] if rows else [])


def _finding(f: Finding, run: str) -> Section:
    others = f" Other possible causes: {'; '.join(f.other_causes)}." if f.other_causes else ""
    figure = f"{f.figure[0].upper()}{f.figure[1:]}"
    verdicts = [
        Verdict(f"{figure}: {number(f.number)} (limit {number(f.limit)})", f.message, "bad"),
        Verdict("Most likely cause", f"{f.cause[0].upper()}{f.cause[1:]}.{others}", "fair"),
        Verdict("What to do", f.remedy, "good", f.change),
    ]
    remedies = [(p.name, f"trimtab remedy {run} --name {p.name}") for p in f.remedies if p.change]
    picks = [
        Pick(
            x.prompt,
            [Answer("Completion", x.completion, x.note)],
            f"Step {x.step}" if x.step is not None else "From the data",
        )
        for x in f.examples
    ]
    lead = f"Alarm {f.alarm}, {f.name}, {_since(f)}. Evidence: {TIERS[f.tier]} ({f.tier})."
    head = ("Remedy", "Command that writes the changed configuration")
    tables = [Table(head, remedies)] if remedies else []
    return Section(f"{f.rank}. {f.title}", lead, verdicts, tables=tables, picks=picks)


def _gold_charts(e: Evidence) -> list[Chart | None]:
    by_step: dict[int, list[AuditedRollout]] = {}
    for a in e.audit:
        by_step.setdefault(a.step, []).append(a)
    if len(by_step) < 2:
        return []
    parts = [by_step[s] for s in sorted(by_step)]
    steps = [float(s) for s in sorted(by_step)]
    proxy = np.array([np.mean([a.proxy for a in part]) for part in parts])
    gold = np.array([np.mean([a.gold for a in part]) for part in parts])
    scale = min(1.0, float(np.ptp(gold)) / max(float(np.ptp(proxy)), 1e-9))
    rescaled = [float(v) for v in gold[0] + (proxy - proxy[0]) * scale]
    charts = [
        line_chart(
            "Gold and reward over training",
            [
                Line("Gold, audited", steps, gold.tolist(), 0),
                Line("Reward, rescaled", steps, rescaled, 1),
            ],
            STEP,
            "Gold score",
            "They should rise together. A growing gap is reward paid for something else.",
        )
    ]
    fit = fit_gold(e)
    kls = [np.mean([a.kl for a in part if a.kl is not None] or [math.nan]) for part in parts]
    distances = [math.sqrt(max(0.0, float(k))) for k in kls if math.isfinite(k)]
    if fit is None or len(distances) != len(parts):
        return charts
    grid = np.linspace(0, max(distances), 60)
    order = np.argsort(distances)
    charts.append(
        line_chart(
            "Gold by distance from the reference",
            [
                Line("Gold, audited", [distances[i] for i in order], gold[order].tolist(), 0),
                Line(
                    "Fit d(α − β ln d)",
                    grid.tolist(),
                    [float(gold[0]) + fit(float(x)) for x in grid],
                    2,
                ),
            ],
            "Distance √KL (√nats)",
            "Gold score",
            f"Gold peaks at √KL {number(fit.peak)}; more distance makes completions worse."
            if math.isfinite(fit.peak) and fit.peak <= 1.5 * max(distances)
            else "Within the measured distances the fit has no peak.",
        )
    )
    return charts


def _checks(d: Diagnosis) -> Section:
    findings = {f.name: f for f in d.findings}
    rows: list[tuple[str, str, str]] = []
    for alarm in all_alarms():
        if alarm.name in findings:
            f = findings[alarm.name]
            state, why = "rings", f"{f.tier}, {number(f.number)}; limit {number(f.limit)}"
        elif alarm.name in d.clean:
            state, why = "clean", ""
        else:
            state, why = "not checked", d.unchecked.get(alarm.name, "")
        rows.append((f"{alarm.number}. {alarm.title}", state, why))
    lead = "An alarm that was not checked says nothing about the run."
    return Section("What was checked", lead, tables=[Table(("Alarm", "State", "Details"), rows)])
