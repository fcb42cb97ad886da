"""``python -m tests.scorecard``, or ``make scorecard``: every row of the reliability table.

Each row is proved by tests of the suite, and by controls: tests that break the very thing (a sync left out, a
random state not saved, a lock ignored) and require that the check notices. A stopped scorecard goes on;
``--again`` measures once more. Exit status 1 if a row is missed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.scorecard import page
from tests.scorecard.measure import Results, measure
from tests.scorecard.table import ROOT, Check, ScoreRow, read_rows, selected


def main() -> None:
    """Measure the rows that are asked for, print the table and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="", help="such as 11,13 or 1-5; default: all")
    parser.add_argument("--again", action="store_true", help="measure what was measured before")
    parser.add_argument(
        "--together", action="store_true", help="one process for all rows, not one for each"
    )
    parser.add_argument("--list", action="store_true", help="print the tests of each row and stop")
    parser.add_argument(
        "--print", action="store_true", help="print and write the page; run nothing"
    )
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "scorecard.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "reliability.md")
    args = parser.parse_args()
    rows, results = read_rows(), Results(args.results)
    chosen = selected(args.rows, rows)
    if args.list:
        print("\n".join(c.key for row in chosen for c in (*row.checks, *row.controls)))
        return
    for batch in _batches(chosen, args.together) if not args.print else ():
        due = [c for c in batch if args.again or results.get(c) is None]
        if not due:
            continue
        print(f"== {', '.join(f'{c.row} {c.name}' for c in due)}", flush=True)
        for check, result in zip(due, measure(due), strict=True):
            results.put(check, result)
            print(
                f"   {check.row} {check.name}: {result.passed} passed, {len(result.failed)} failed, {len(result.skipped)} skipped, {result.seconds:.0f} s"
            )
    print(page.table(chosen, results))
    page.write(args.page, rows, results)
    sys.exit(any(page.state(row, results) == "missed" for row in chosen))


def _batches(rows: Sequence[ScoreRow], together: bool) -> list[list[Check]]:
    """What runs in one process: a row, or all rows that need the same environment."""
    batches: dict[Any, list[Check]] = {}
    for row in rows:
        for check in (*row.checks, *row.controls):
            batches.setdefault(check.env if together else row.number, []).append(check)
    return list(batches.values())


if __name__ == "__main__":
    main()
