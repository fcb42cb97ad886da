"""The diagnosis of a run: every alarm is checked, findings are ranked by root cause, one verdict."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from trimtab.doctor.alarm import RL_STAGES
from trimtab.doctor.alarms import all_alarms
from trimtab.doctor.alarms import thresholds as limits
from trimtab.doctor.evidence import Evidence, Unchecked, end_mean, read
from trimtab.doctor.finding import Finding
from trimtab.errors import DataError
from trimtab.runs import read_findings, write_atomic
from trimtab.stats.change import two_means

log = logging.getLogger(__name__)

Verdict = Literal["real", "not real", "broken", "not proven"]
"""Whether the reward is real. "broken": only mechanical alarms rang, so nothing can be said."""


class Diagnosis(BaseModel):
    """The doctor's result for a run; ``--json`` prints it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    stage: str
    verdict: Verdict
    line: str
    """The verdict in one or two sentences."""
    findings: tuple[Finding, ...]
    """The most likely root cause first."""
    clean: tuple[str, ...]
    """Alarms that were checked and did not ring."""
    unchecked: dict[str, str]
    """Alarms that could not be checked, and why."""
    audited: int
    """Rollouts in the gold audit."""
    exported: str = ""
    """Which policy a run with ``audit.act: stop`` exported, and why; empty for any other run."""


def examine(folder: str | Path, ignore: frozenset[str] = frozenset()) -> Diagnosis:
    """Check every alarm on a run folder; nothing is written.

    Args:
        folder: A run of trimtab, or an imported one.
        ignore: Kinds of evidence to leave out ("audit", "probes"), to see what rests on them.

    Raises:
        DataError: the folder holds no run, or a file of it cannot be read.
    """
    evidence = read(folder)
    if "audit" in ignore:
        evidence.audit = []
    if "probes" in ignore:
        evidence.probes = []
    return diagnose(evidence)


def diagnose(evidence: Evidence) -> Diagnosis:
    """Check every alarm on evidence that was read already."""
    findings: list[Finding] = []
    clean: list[str] = []
    unchecked: dict[str, str] = {}
    for alarm in all_alarms():
        if evidence.stage and evidence.stage not in alarm.stages:
            unchecked[alarm.name] = f"does not apply to stage {evidence.stage}"
            continue
        evidence.metrics_read.clear()
        try:
            finding = alarm(evidence)
        except Unchecked as reason:
            unchecked[alarm.name] = str(reason)
            continue
        lost = sorted(evidence.metrics_read & evidence.not_finite.keys())
        if finding is None and lost:
            # The finite values of a run that diverged say nothing about its end.
            since = evidence.not_finite[lost[0]]
            unchecked[alarm.name] = f"{lost[0]} is not finite since step {since}"
        elif finding is None:
            clean.append(alarm.name)
        else:
            findings.append(finding)
    ordered = sorted(findings, key=lambda f: _precedence(f, findings, evidence))
    ranked = tuple(f.model_copy(update={"rank": i}) for i, f in enumerate(ordered, 1))
    verdict, line = _verdict(ranked, clean, evidence)
    audit = evidence.summary.get("audit")
    return Diagnosis(
        run=str(evidence.folder),
        stage=evidence.stage,
        verdict=verdict,
        line=line,
        findings=ranked,
        clean=tuple(clean),
        unchecked=unchecked,
        audited=len(evidence.audit),
        exported=str(audit.get("why", "")) if isinstance(audit, dict) else "",
    )


def _precedence(finding: Finding, findings: Sequence[Finding], evidence: Evidence) -> float:
    """Place in the order of causes, lowest first.

    Alarms have a fixed place: a broken reward pipe explains a frozen policy, a bonus for length explains
    truncation, any hack explains that gold falls. A few findings are moved by what was found with them.
    """
    place = {a.number: float(a.precedence) for a in all_alarms()}
    names = {f.name for f in findings}
    first = finding.step or 0
    # Where length is paid for, repetition is only a sign of padding; alone it is the cause.
    if finding.severity == "warning" and (
        finding.name != "degenerate" or "length-hacking" in names
    ):
        return place[finding.alarm] + max(place.values()) + 10
    if finding.name == "endless" and finding.step is None:
        return 5.0  # a wrong stop token, not a learned habit
    if finding.name == "kl-runaway":
        # Every hack moves away from the reference; KL is the cause only if it came first and bought
        # nothing.
        x, reward = evidence.series("reward/mean")
        bought = end_mean(reward) > float(reward[np.argmin(np.abs(x - first))])
        hacks = ("length-hacking", "sycophancy", "mode-collapse", "degenerate")
        if any(f.name in hacks and (bought or (f.step or 0) <= first) for f in findings):
            return place[8] + 5
    if finding.name == "dead-gradient" and finding.step is not None:
        early = first <= 0.2 * evidence.total_steps
        return place[2] - 5 if early else place[finding.alarm]
    return place[finding.alarm]


def _verdict(findings: Sequence[Finding], clean: Sequence[str], e: Evidence) -> tuple[Verdict, str]:
    if findings:
        first = findings[0]
        verdict: Verdict = (
            "not real" if any(f.nature == "alignment" for f in findings) else "broken"
        )
        head = "Do not trust the reward" if verdict == "not real" else "The training is broken"
        since = f" since step {first.step}" if first.step is not None else ""
        more = f" ({len(findings) - 1} more findings below)" if len(findings) > 1 else ""
        title = f"{first.title[0].lower()}{first.title[1:]}"
        return verdict, f"{head}: {title}{since}{more}. Most likely cause: {first.cause}."
    golds = [a.gold for a in e.audit]
    if len(golds) >= limits.AUDIT_MIN:
        third = len(golds) // 3
        early, late = float(np.mean(golds[:third])), float(np.mean(golds[-third:]))
        if two_means(golds[:third], golds[-third:]) > limits.REAL_T:
            return "real", (
                f"The reward is real: audited gold rose from {early:.3f} to {late:.3f} over {len(golds)} "
                "rollouts, and no alarm rings."
            )
        return "not proven", (
            f"No alarm rings, but over {len(golds)} audited rollouts gold did not clearly rise "
            f"({early:.3f} to {late:.3f})."
        )
    if e.stage in RL_STAGES or e.has("reward/mean"):
        return "not proven", (
            f"No alarm rings in {len(clean)} checks. Without a gold audit it is not proven that the reward "
            "is real."
        )
    return "not proven", f"No alarm rings in {len(clean)} checks of this run."


def write_findings(folder: str | Path, findings: Sequence[Finding]) -> list[Finding]:
    """Replace the doctor's lines of ``findings.jsonl``; lines of other sources stay.

    Returns:
        Findings of alarms that had none before.
    """
    path = Path(folder) / "findings.jsonl"
    previous = read_findings(folder)
    others = [json.dumps(f, ensure_ascii=False) for f in previous if f.get("source") != "doctor"]
    rang = {f.get("alarm") for f in previous if f.get("source") == "doctor"}
    lines = [*others, *(f.model_dump_json() for f in findings)]
    if lines or path.exists():
        write_atomic(path, "".join(f"{line}\n" for line in lines).encode("utf-8", "replace"))
    return [f for f in findings if f.alarm not in rang]


def examine_live(folder: str | Path, total_steps: int) -> list[Finding]:
    """Diagnose a run while it trains: write ``findings.jsonl``, log new findings and return them."""
    try:
        evidence = read(folder)
    except DataError:
        return []  # nothing was recorded yet
    evidence.facts = {**evidence.facts, "steps": total_steps}
    findings = write_findings(folder, diagnose(evidence).findings)
    for finding in findings:
        since = f" since step {finding.step}" if finding.step is not None else ""
        log.warning("doctor: %s%s. %s", finding.title, since, finding.message)
    return findings
