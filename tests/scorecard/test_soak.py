"""A slice of the soak: it completes over faults, and leaks are noticed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.scorecard import soak
from tests.support.scorecard import scorecard_only

pytestmark = pytest.mark.slow


def test_a_slice_completes(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    soak.prepare(tmp_path, 60, 15, seed=1, leaks=False)
    starts = soak.run(tmp_path, 60)
    # A leak at each step is 1,000 per 1,000; a connection to the judge that opens late is 25 over 40 steps.
    figures = soak.judge(tmp_path, 60, settled=10, most=300.0)
    record_property("starts", starts)
    # Memory needs a longer run: see make soak.
    assert [w for w in figures["wrong"] if "memory" not in w] == []
    assert figures["faults"] == 3


@scorecard_only
def test_planted_leaks_are_noticed(tmp_path: Path) -> None:
    soak.prepare(tmp_path, 60, 1000, seed=0, leaks=True)
    assert soak.run(tmp_path, 60) == 1
    wrong = " ".join(soak.judge(tmp_path, 60, settled=10, most=300.0)["wrong"])
    assert "memory grows" in wrong and "descriptors grow" in wrong and "threads grow" in wrong
