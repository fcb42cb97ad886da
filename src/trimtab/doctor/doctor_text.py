"""A diagnosis as text for a terminal."""

from __future__ import annotations

import textwrap

from trimtab.doctor.diagnosis import Diagnosis
from trimtab.doctor.finding import Finding

WIDTH = 100
TIERS = {"T0": "curves and facts", "T1": "rollouts and probes", "T2": "gold audit"}


def to_text(d: Diagnosis) -> str:
    """The verdict, the findings with what to change, and what was not checked."""
    lines = [_wrap(f"{d.verdict.upper()}. {d.line}"), ""]
    if d.exported:
        lines[1:1] = [_wrap(f"Exported policy: {d.exported}")]
    for f in d.findings:
        lines += [*_finding(f, d.run), ""]
    if d.clean:
        lines.append(_wrap(f"Clean: {', '.join(d.clean)}."))
    if d.unchecked:
        lines.append("Not checked:")
        lines += [_wrap(f"{name}: {reason}", "  ") for name, reason in d.unchecked.items()]
    return "\n".join(lines)


def _finding(f: Finding, run: str) -> list[str]:
    since = f"since step {f.step}" if f.step is not None else "from the start"
    others = f" Other possible causes: {'; '.join(f.other_causes)}." if f.other_causes else ""
    lines = [
        f"{f.rank}. {f.title} [{f.name}, {since}; evidence: {TIERS[f.tier]} ({f.tier})]",
        _wrap(f.message, "   "),
        _wrap(f"Cause: {f.cause}.{others}", "   "),
        _wrap(f"Do: {f.remedy}", "   "),
    ]
    lines += [f"     {line}" for line in f.change.splitlines()]
    names = ", ".join(p.name for p in f.remedies if p.change)
    if names:
        lines.append(
            _wrap(f"To apply one: trimtab remedy {run} --name NAME (NAME: {names})", "   ")
        )
    for x in f.examples:
        step = f"step {x.step}: " if x.step is not None else ""
        # Text of a model may hold anything; a terminal must not obey it.
        prompt = textwrap.shorten(_printable(x.prompt), 40)
        completion = textwrap.shorten(_printable(x.completion), 50)
        lines.append(f"   > {step}{prompt} => {completion} ({_printable(x.note)})")
    return lines


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _wrap(text: str, indent: str = "") -> str:
    return textwrap.fill(
        _printable(text),
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )
