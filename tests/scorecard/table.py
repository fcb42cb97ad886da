"""The rows of the scorecard: ``rows.toml`` as objects."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Check:
    """Tests that prove a row for one stage, or that a control of the row fails."""

    row: int
    name: str
    """The stage, or what the control leaves out."""
    tests: tuple[str, ...]
    """Node ids of pytest."""
    is_control: bool = False
    env: tuple[str, ...] = ()
    """Environment variables NAME=VALUE that the tests need to run in full."""

    @property
    def key(self) -> str:
        """Its name in the results; other tests are another check."""
        kind = "control" if self.is_control else "check"
        return f"{self.row} {kind} {self.name}: {' '.join(self.tests)}"


@dataclass(frozen=True)
class ScoreRow:
    """A row of the table."""

    number: int
    test: str
    target: str
    checks: tuple[Check, ...] = ()
    controls: tuple[Check, ...] = ()
    figure: str = ""
    """A figure that the tests record: "largest difference", by ``record_property``."""
    missing: str = ""
    """What of the row no test covers."""


FILE = Path(__file__).with_name("rows.toml")


def read_rows(file: Path = FILE) -> list[ScoreRow]:
    """The rows in order of their numbers."""
    rows: list[ScoreRow] = []
    for entry in tomllib.loads(file.read_text(encoding="utf-8"))["row"]:
        number = int(entry["number"])
        env = tuple(entry.get("env", ()))
        checks, controls = (
            tuple(
                Check(number, name, tuple(tests), kind == "controls", env)
                for name, tests in entry.get(kind, {}).items()
            )
            for kind in ("checks", "controls")
        )
        rows.append(
            ScoreRow(
                number,
                entry["test"],
                entry["target"],
                checks,
                controls,
                entry.get("figure", ""),
                entry.get("missing", ""),
            )
        )
    return sorted(rows, key=lambda row: row.number)


def selected(text: str, rows: list[ScoreRow]) -> list[ScoreRow]:
    """The rows of "11,13" or "1-3,28"; all of them for an empty text.

    Raises:
        SystemExit: a number is no row.
    """
    if not text:
        return rows
    numbers: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers |= set(range(int(first), int(last or first) + 1))
    if unknown := numbers - {row.number for row in rows}:
        raise SystemExit(f"--rows: there is no row {sorted(unknown)}")
    return [row for row in rows if row.number in numbers]
