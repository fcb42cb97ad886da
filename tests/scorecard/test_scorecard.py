"""The runner of the scorecard: its table names tests that exist, results go on, a failure is a miss."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scorecard import page
from tests.scorecard.measure import Result, Results, measure
from tests.scorecard.table import ROOT, Check, ScoreRow, read_rows, selected


def test_every_row_is_there_and_names_tests_that_exist() -> None:
    rows = read_rows()
    assert [row.number for row in rows] == list(range(1, 29))
    for test in {t for row in rows for c in (*row.checks, *row.controls) for t in c.tests}:
        file, _, name = test.partition("::")
        text = (ROOT / file).read_text(encoding="utf-8")
        assert not name or re.search(rf"^(async )?def {name.partition('[')[0]}\(", text, re.M), test


def test_rows_are_selected() -> None:
    rows = read_rows()
    assert [r.number for r in selected("1-3,28", rows)] == [1, 2, 3, 28]
    assert selected("", rows) == rows
    with pytest.raises(SystemExit, match="no row"):
        selected("29", rows)


TESTS = """
import pytest
def test_good(record_property): record_property("worst", 0.5)
def test_bad(): assert False
def test_left_out(): pytest.skip("no GPU")
"""


def check(tmp_path: Path, *names: str, control: bool = False) -> Check:
    file = tmp_path / "test_some.py"
    file.write_text(TESTS)
    return Check(1, "sft", tuple(f"{file}::{name}" for name in names), control)


@pytest.mark.slow
def test_what_is_measured_reaches_the_page(tmp_path: Path) -> None:
    good, bad = check(tmp_path, "test_good", "test_left_out"), check(tmp_path, "test_bad")
    absent, skipped = check(tmp_path, "test_absent"), check(tmp_path, "test_left_out")
    results = Results(tmp_path / "results.json")
    every = [good, bad, skipped]
    for one, result in zip([*every, absent], [*measure(every), *measure([absent])], strict=True):
        results.put(one, result)
    results = Results(tmp_path / "results.json")  # as after a restart
    row = ScoreRow(1, "a | b", "0", (good,), (Check(1, "broken", good.tests, True),), "worst")
    assert page.state(row, results) == "in part"
    assert page.figure(row, results) == "1 of 1 tests pass, worst 0.5 (sft)"
    results.put(row.controls[0], Result(passed=1))
    assert page.state(row, results) == "reached"
    assert page.control(row, results) == "broken: noticed"
    results.put(row.controls[0], Result(failed=["x"]))
    assert page.state(row, results) == "missed"
    for broken in (bad, absent):
        assert page.state(ScoreRow(2, "t", "0", (broken,)), results) == "missed"
    left_out = ScoreRow(3, "t", "0", (skipped,))
    assert page.state(left_out, results) == "not measured"
    assert "skipped (no GPU)" in page.gaps(left_out, results)


def test_the_page_keeps_what_people_wrote(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    rows = read_rows()
    page.write(file, rows, Results(tmp_path / "none.json"))
    text = file.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "\nold\n" not in text
    assert "28 rows: 0 reached, 0 in part, 0 missed, 28 not measured" in text
    file.write_text("no markers")
    with pytest.raises(ValueError, match="are missing"):
        page.write(file, rows, Results(tmp_path / "none.json"))


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text(f"{page.BEGIN}\n{page.END}\n")
    words = [sys.executable, "-m", "tests.scorecard", "--page", str(file), "--print"]
    run = subprocess.run(
        [*words, "--results", str(tmp_path / "r.json"), "--rows", "5"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0 and "| 5 | flip or cut one byte" in run.stdout
    assert "| 28 | soak" in file.read_text(encoding="utf-8")
