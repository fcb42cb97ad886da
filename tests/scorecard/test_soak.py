"""A slice of the soak: it completes over faults, and leaks are noticed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.scorecard import soak
from tests.support.scorecard import scorecard_only


def test_the_slope_is_that_within_groups() -> None:
    times, groups = [0.0, 1000.0, 5000.0, 6000.0], [1, 1, 2, 2]
    assert soak.slope(times, [5.0, 7.0, 100.0, 102.0], groups) == pytest.approx(2.0)
    assert soak.slope([1.0, 2.0], [3.0, 9.0], [1, 2]) == 0.0


def test_the_recorded_soak(record_property: Callable[[str, object], None]) -> None:
    """``make soak`` takes an hour; these are the figures of its last run."""
    if not soak.RECORD.exists():
        pytest.skip(f"{soak.RECORD} is missing: make soak")
    figures = json.loads(soak.RECORD.read_bytes())
    record_property("MB per 1,000 steps", figures["slopes_per_1000_steps"]["rss_mb"])
    assert figures["wrong"] == []
    assert figures["steps"] >= 10_000 + soak.CALM and figures["faults"] >= 199
    assert figures["longest_life"] >= 2500


@pytest.mark.parametrize(
    ("leak", "noticed"), [(0.0, False), (0.5, False), (1.5, True)], ids=["none", "small", "leak"]
)
def test_a_small_leak_is_told_from_a_cache_that_fills(leak: float, noticed: bool) -> None:
    ages = range(0, 3000, 20)
    rows = [
        {"pid": 1, "age": age, "rss_mb": 550 + min(age / 250, 6) + leak * age / 1000}
        for age in ages
    ]
    growth = soak.slope_of_life(soak.steady(rows, soak.SETTLED), "rss_mb")
    assert (growth >= soak.SLOPE) == noticed and growth == pytest.approx(leak)


@pytest.mark.parametrize(("steps", "most"), [(5, 300.0), (500, soak.GROWTH)], ids=["short", "long"])
def test_files_open_for_a_moment_are_told_from_a_leak(steps: int, most: float) -> None:
    """Over a few looks both can have the same slope."""

    def found(descriptors: Sequence[int]) -> list[str]:
        rows = [
            {"pid": 1, "step": i * steps, "age": i * steps, "rss_mb": 500.0, "threads": 9, "children": 0}
            | {"descriptors": 30 + number}
            for i, number in enumerate(descriptors)
        ]  # fmt: skip
        return soak.growth(rows, settled=10, most=most)[1]

    assert found([0, 0, 0, 0, 5]) == []
    assert ["descriptors" in leak for leak in found([0, 5, 10, 15, 20])] == [True]


@pytest.mark.slow
def test_a_slice_completes(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    soak.prepare(tmp_path, 60, 15, seed=1)
    starts = soak.run(tmp_path)
    # A leak at each step is 1,000 per 1,000 steps.
    figures = soak.judge(tmp_path, 60, settled=10, most=300.0)
    record_property("starts", starts)
    # Memory needs a longer run: see make soak.
    assert [w for w in figures["wrong"] if "memory" not in w] == []
    assert figures["faults"] == 3


@pytest.mark.slow
@scorecard_only
def test_planted_leaks_are_noticed(tmp_path: Path) -> None:
    soak.prepare(tmp_path, 60, 1000, seed=0, leaks=True)
    assert soak.run(tmp_path) == 1
    wrong = " ".join(soak.judge(tmp_path, 60, settled=10, most=300.0)["wrong"])
    assert "memory grows" in wrong and "descriptors grow" in wrong and "threads grow" in wrong
