"""The generated part of ``docs/reliability.md``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.scorecard.measure import Result, Results
from tests.scorecard.table import Check, ScoreRow

BEGIN, END = "<!-- scorecard: begin -->", "<!-- scorecard: end -->"


def state(row: ScoreRow, results: Results) -> str:
    """ "reached", "missed", "in part" or "not measured"."""
    every = [results.get(c) for c in (*row.checks, *row.controls)]
    measured = [r for r in every if r is not None and r.is_measured]
    if any(r.failed for r in measured):
        return "missed"
    if not any(_measured(c, results) for c in row.checks):
        return "not measured"
    complete = len(measured) == len(every) and row.controls and not row.missing
    return "reached" if complete else "in part"


def _measured(check: Check, results: Results) -> bool:
    result = results.get(check)
    return result is not None and result.is_measured


def figure(row: ScoreRow, results: Results) -> str:
    """What was measured, in a few words."""
    done = [(c, r) for c in row.checks if (r := results.get(c)) is not None and r.is_measured]
    if not done:
        return "–"
    passed = sum(r.passed for _, r in done)
    failed = [name.rpartition("::")[2] for _, r in done for name in r.failed]
    text = f"{passed} of {passed + len(failed)} tests pass"
    values = [v for _, r in done for v in r.figures.get(row.figure, ())]
    if values:
        text += f", {row.figure} {max(values):.3g}"
    text += f" ({', '.join(c.name for c, _ in done)})"
    return text + (f"; failed: {', '.join(failed)}" if failed else "")


def control(row: ScoreRow, results: Results) -> str:
    """What each control leaves out, and whether the check noticed it."""
    parts: list[str] = []
    for check in row.controls:
        result = results.get(check)
        if result is None or not result.is_measured:
            said = "not measured"
        else:
            said = "noticed" if result.is_good else "NOT NOTICED"
        parts.append(f"{check.name}: {said}")
    return "; ".join(parts) or "none yet"


def gaps(row: ScoreRow, results: Results) -> str:
    """What of the row was not measured, and why."""
    parts = [row.missing] if row.missing else []
    for check in row.checks:
        result = results.get(check)
        if result is None:
            parts.append(f"{check.name}: not run")
        elif not result.is_measured:
            parts.append(f"{check.name}: skipped ({_reason(result)})")
    return "; ".join(parts) or "–"


def _reason(result: Result) -> str:
    return (result.skipped or ["no test"])[0].replace("|", "/")[:100]


def table(rows: Sequence[ScoreRow], results: Results) -> str:
    """The scorecard as a Markdown table, with a line of totals."""
    states = [state(row, results) for row in rows]
    total = ", ".join(
        f"{states.count(s)} {s}" for s in ("reached", "in part", "missed", "not measured")
    )
    commits = sorted({r.commit for r in results.by_key.values() if r.commit})
    lines = [
        f"{len(rows)} rows: {total}. Measured at {', '.join(commits) or 'no commit'}.",
        "",
        "| # | test | target | state | figure | control | not measured |",
        "|---|---|---|---|---|---|---|",
    ]
    for row, reached in zip(rows, states, strict=True):
        cells = (
            str(row.number), row.test, row.target, reached, figure(row, results),
            control(row, results), gaps(row, results),
        )  # fmt: skip
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def write(page: Path, rows: Sequence[ScoreRow], results: Results) -> None:
    """Replace the part of the page between the markers.

    Raises:
        ValueError: the page has no markers.
    """
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page}: the lines {BEGIN} and {END} are missing")
    page.write_text(
        f"{before}{BEGIN}\n{table(rows, results)}\n{END}{after}", encoding="utf-8", newline="\n"
    )
