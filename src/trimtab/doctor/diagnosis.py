"""The doctor's round: every alarm asked, findings ranked by likely cause, one line said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from trimtab.doctor.alarm import Alarm
from trimtab.doctor.alarms import completions, curves, gold, training_data
from trimtab.doctor.evidence import Evidence, Unchecked, edge, read
from trimtab.doctor.finding import Finding
from trimtab.errors import DataError
from trimtab.runs import read_findings, write_atomic
from trimtab.runs.console import console
from trimtab.stats.change import two_means

_RL = ("rl", "online_dpo")
_PAIRS = ("dpo", "reward")

ALARMS: tuple[Alarm, ...] = (
    Alarm(1, "over-optimised", "alignment", "The proxy rises and what is wanted falls",
          "p that gold has not fallen, or fall of the watched reward", _RL, gold.overoptimised),
    Alarm(2, "kl-runaway", "mechanical", "The policy runs away from its reference",
          "KL to the reference, nats an answer", _RL, curves.runaway),
    Alarm(3, "frozen", "mechanical", "The policy does not move",
          "KL to the reference, nats an answer", _RL, curves.frozen),
    Alarm(4, "length-hacking", "alignment", "Reward is bought with length",
          "share of the reward gained that length explains", _RL, completions.lengthened),
    Alarm(5, "sycophancy", "alignment", "Answers follow what the person believes",
          "rise of the share of answers that follow the belief", _RL, completions.flatters),
    Alarm(6, "weak-reward-model", "alignment", "The reward model knows little",
          "low end of held-out accuracy", ("reward", *_RL), training_data.weak),
    Alarm(7, "entropy-exhausted", "mechanical", "Exploration has ended too early",
          "entropy left, share of the start", _RL, curves.exhausted),
    Alarm(8, "mode-collapse", "alignment", "Different prompts get one answer",
          "different answers left, share of the start", _RL, completions.collapsed),
    Alarm(9, "endless", "mechanical", "Answers do not end",
          "share of answers that end by themselves, or of labels without an end", (*_RL, "sft", *_PAIRS), training_data.endless),
    Alarm(10, "template", "mechanical", "Prompts are written otherwise than the model knows them",
          "nats a token, or share of prompts", (*_RL, "sft", *_PAIRS), training_data.template),
    Alarm(11, "value-collapse", "mechanical", "The critic explains nothing",
          "explained variance of returns", ("rl",), curves.value_collapse),
    Alarm(12, "off-policy", "mechanical", "Sampler and trainer have drifted apart",
          "effective sample size, or share of tokens clipped", ("rl",), curves.drift),
    Alarm(13, "dead-gradient", "mechanical", "Most of the batch teaches nothing",
          "share of groups with equal rewards, or of steps skipped", ("rl",), curves.dead),
    Alarm(14, "reward-pipe", "mechanical", "The reward arrives broken",
          "share of answers without a reward, or with the fallback value", _RL, curves.pipe),
    Alarm(15, "judge-bias", "alignment", "The judge looks at the wrong thing",
          "wins of what is shown first, or as said", _RL, training_data.partial),
    Alarm(16, "degenerate", "alignment", "Answers repeat themselves or are no language",
          "share of late answers", _RL, completions.degenerate),
    Alarm(17, "displacement", "mechanical", "Chosen answers become unlikely",
          "log-prob of chosen answers against the start, nats", ("dpo", "online_dpo"), curves.displaced),
    Alarm(18, "bad-pairs", "alignment", "Comparisons are not to be trusted",
          "share of pairs", _PAIRS, training_data.bad_pairs),
)  # fmt: skip

UPSTREAM = (10, 14, 15, 18, 6, 12, 2, 5, 16, 4, 8, 11, 17, 1, 9, 3, 13, 7)
"""Causes before what they bring about: a broken pipe explains a frozen policy, a bonus for length
explains truncation, and any hack explains that gold falls. KL that runs away explains odd text only
where it came first and bought nothing: see ``_order``."""

Word = Literal["real", "not real", "broken", "not proven"]


class Diagnosis(BaseModel):
    """What the doctor says of a run; ``--json`` prints it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    stage: str
    verdict: Word
    line: str
    """The verdict in one line."""
    findings: tuple[Finding, ...]
    """Likeliest cause first."""
    clean: tuple[str, ...]
    """Alarms that were asked and did not ring."""
    unchecked: dict[str, str]
    """Alarms that could not be asked, and why."""
    audited: int
    """Rollouts in the gold audit."""
    handed_over: str = ""
    """Which policy a run with ``audit.act: stop`` handed over, and why; empty for any other run."""


def examine(folder: str | Path, leave: frozenset[str] = frozenset()) -> Diagnosis:
    """Ask every alarm of a run folder; nothing is written.

    Args:
        folder: Of a run of trimtab, or an imported one.
        leave: Kinds of evidence not to look at ("audit", "probes"), to know what rests on them.

    Raises:
        DataError: the folder holds no run, or a file of it cannot be read.
    """
    evidence = read(folder)
    if "audit" in leave:
        evidence.audit = []
    if "probes" in leave:
        evidence.probes = []
    return diagnose(evidence)


def diagnose(evidence: Evidence) -> Diagnosis:
    """The same of evidence that is at hand."""
    found: list[Finding] = []
    clean: list[str] = []
    unchecked: dict[str, str] = {}
    for alarm in ALARMS:
        if evidence.stage and evidence.stage not in alarm.stages:
            unchecked[alarm.name] = f"not asked of a run of stage {evidence.stage}"
            continue
        try:
            finding = alarm(evidence)
        except Unchecked as why:
            unchecked[alarm.name] = str(why)
            continue
        if finding is None:
            clean.append(alarm.name)
        else:
            found.append(finding)
    ranked = tuple(
        f.model_copy(update={"rank": place})
        for place, f in enumerate(sorted(found, key=lambda f: _order(f, found, evidence)), 1)
    )
    word, line = _verdict(ranked, clean, evidence)
    return Diagnosis(
        run=str(evidence.folder), stage=evidence.stage, verdict=word, line=line, findings=ranked,
        clean=tuple(clean), unchecked=unchecked, audited=len(evidence.audit),
        handed_over=_handed_over(evidence),
    )  # fmt: skip


def _handed_over(e: Evidence) -> str:
    audit = e.summary.get("audit")
    return str(audit.get("why", "")) if isinstance(audit, dict) else ""


def _order(finding: Finding, found: list[Finding], evidence: Evidence) -> float:
    """Place in the order of causes: what is so before the first step causes what comes later."""
    place = float(UPSTREAM.index(finding.alarm))
    # Repetition is a mere sign where length is paid for; alone it is the cause.
    sign = finding.alarm != 16 or any(f.alarm == 4 for f in found)
    if finding.severity == "warning" and sign:
        return place + len(UPSTREAM)
    if finding.alarm == 9 and finding.step is None:
        return 0.5  # a wrong stop token, not something learnt
    if finding.alarm == 2:
        # Distance is a means of every hack; it is the cause where it came first and bought nothing.
        x, reward = evidence.series("reward/mean")
        began = finding.step or 0
        bought = edge(reward, last=True) > float(reward[np.argmin(np.abs(x - began))])
        hacked = any(f.alarm in (4, 5, 8, 16) and (bought or (f.step or 0) <= began) for f in found)
        return UPSTREAM.index(8) + 0.5 if hacked else place
    if finding.alarm == 13 and finding.step is not None and finding.step <= 0.2 * evidence.total:
        return UPSTREAM.index(2) - 0.5
    return place


def _verdict(found: tuple[Finding, ...], clean: list[str], e: Evidence) -> tuple[Word, str]:
    if found:
        first = found[0]
        word: Word = "not real" if any(f.nature == "alignment" for f in found) else "broken"
        began = f" since step {first.step}" if first.step is not None else ""
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        head = "The reward is not to be trusted" if word == "not real" else "The training is broken"
        return (
            word,
            f"{head}: {first.title[0].lower()}{first.title[1:]}{began}{more}. Likeliest cause: {first.cause}.",
        )
    golds = [a.gold for a in e.audit]
    if len(golds) >= gold.LEAST:
        third = len(golds) // 3
        early, late = float(np.mean(golds[:third])), float(np.mean(golds[-third:]))
        if two_means(golds[:third], golds[-third:]) > 1.645:
            return (
                "real",
                f"The reward is real: audited gold rose from {early:.3f} to {late:.3f} over {len(golds)} rollouts, and no alarm rings.",
            )
        return (
            "not proven",
            f"No alarm rings, but over {len(golds)} audited rollouts gold did not clearly rise ({early:.3f} to {late:.3f}).",
        )
    if e.stage in _RL or e.has("reward/mean"):
        return (
            "not proven",
            f"No alarm rings in {len(clean)} checks; that the reward is real is not proven without a gold audit.",
        )
    return "not proven", f"No alarm rings in {len(clean)} checks of this run."


def write(folder: str | Path, findings: tuple[Finding, ...]) -> list[Finding]:
    """Replace the doctor's lines of ``findings.jsonl``; others' lines stay.

    Returns:
        Findings of alarms that were not there before.
    """
    path = Path(folder) / "findings.jsonl"
    held = read_findings(folder)
    kept = [json.dumps(f, ensure_ascii=False) for f in held if f.get("source") != "doctor"]
    known = {f.get("alarm") for f in held if f.get("source") == "doctor"}
    lines = [*kept, *(f.model_dump_json() for f in findings)]
    if lines or path.exists():
        write_atomic(path, "".join(f"{line}\n" for line in lines).encode("utf-8", "replace"))
    return [f for f in findings if f.alarm not in known]


def attend(folder: str | Path, total: int) -> None:
    """A look at a run while it trains: writes ``findings.jsonl`` and says what is new."""
    try:
        evidence = read(folder)
    except DataError:
        return  # nothing was recorded yet
    evidence.facts = {**evidence.facts, "steps": total}
    for finding in write(folder, diagnose(evidence).findings):
        since = f" since step {finding.step}" if finding.step is not None else ""
        console.print(
            f"doctor: {finding.title}{since}. {finding.message}", style="yellow", markup=False
        )
