"""Report and doctor on long runs: memory and work grow with the steps and no faster; extremes stay."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from benchmarks import huge_run
from trimtab.doctor import diagnosis
from trimtab.report.run_report import report_run

pytestmark = pytest.mark.slow

SMALL, LARGE = 12_500, 50_000


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    base = tmp_path_factory.mktemp("runs")
    for steps in (SMALL, LARGE):
        huge_run.write(base / str(steps), steps)
    return {steps: base / str(steps) for steps in (SMALL, LARGE)}


def test_memory_grows_with_the_numbers_alone(folders: dict[int, Path]) -> None:
    numbers_mb = (LARGE - SMALL) * len(huge_run.METRICS) * 8 / 2**20
    for command in ("report", "doctor"):
        small, large = (huge_run.measure(command, folders[n])["peak_mb"] for n in (SMALL, LARGE))
        # Python objects for each number would take at least five times as much.
        assert large - small < 2.5 * numbers_mb + 15, (command, small, large)


def test_work_grows_no_faster_than_the_steps(folders: dict[int, Path]) -> None:
    report_run(folders[SMALL])  # imports and caches
    diagnosis.examine(folders[SMALL])
    for work in (report_run, diagnosis.examine):
        seconds: dict[int, float] = {}
        for steps, folder in folders.items():
            since = time.process_time()
            work(folder)
            seconds[steps] = time.process_time() - since
        # Four times the steps; work that grows with their square would take sixteen times as long.
        assert seconds[LARGE] < 8 * seconds[SMALL], (work, seconds)


def test_a_single_spike_and_lost_values_are_in_the_page(folders: dict[int, Path]) -> None:
    page = report_run(folders[LARGE]).read_text(encoding="utf-8")
    chart = page[page.index("<h3>Reward</h3>") :]
    raw = re.findall(r'class="line raw[^"]*" d="M([^"]*)"', chart[: chart.index("</figure>")])[0]
    heights = [float(point.split()[1]) for point in raw.split("L")]
    assert min(heights) < 40 < sorted(heights)[1], "one step of 50,000 is the only high one"
    assert page.count("1 values are NaN or infinite") == 2
    assert len(page) < 1_500_000
