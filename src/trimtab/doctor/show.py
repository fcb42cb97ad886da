"""The diagnosis as text for a terminal."""

from __future__ import annotations

import textwrap

from trimtab.doctor.diagnosis import Diagnosis
from trimtab.doctor.finding import Finding

WIDTH = 100
TIERS = {"T0": "curves and facts", "T1": "rollouts and probes", "T2": "gold audit"}


def text(d: Diagnosis) -> str:
    """Verdict, findings with what to change, what was not checked."""
    lines = [_wrap(f"{d.verdict.upper()}. {d.line}", ""), ""]
    if d.handed_over:
        lines[1:1] = [_wrap(f"Handed over: {d.handed_over}", "")]
    for f in d.findings:
        lines += [*_finding(f), ""]
    if d.clean:
        lines.append(_wrap(f"Clean: {', '.join(d.clean)}.", ""))
    if d.unchecked:
        lines.append("Not checked:")
        lines += [_wrap(f"{name}: {why}", "  ") for name, why in d.unchecked.items()]
    return "\n".join(lines)


def _finding(f: Finding) -> list[str]:
    since = f"since step {f.step}" if f.step is not None else "from the start"
    lines = [
        f"{f.rank}. {f.title} [{f.name}, {since}; rests on {TIERS[f.tier]} ({f.tier})]",
        _wrap(f.message, "   "),
        _wrap(f"Cause: {f.cause}." + (f" Or: {'; '.join(f.others)}." if f.others else ""), "   "),
        _wrap(f"Do: {f.remedy}", "   "),
    ]
    lines += [f"     {line}" for line in f.change.splitlines()]
    for x in f.examples:
        step = f"step {x.step}: " if x.step is not None else ""
        # Text of a model may hold anything; a terminal must not obey it.
        lines.append(
            textwrap.shorten(f"   > {step}{_safe(x.prompt)} => {_safe(x.answer)}", WIDTH)
            + f" ({_safe(x.note)})"
        )
    return lines


def _safe(said: str) -> str:
    return "".join(c if c.isprintable() else " " for c in said)


def _wrap(said: str, indent: str) -> str:
    return textwrap.fill(_safe(said), WIDTH, initial_indent=indent, subsequent_indent=indent)
