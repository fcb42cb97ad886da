"""The peak memory of each stage of a recipe, and not of the stages before it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from trimtab.cli.main import main as cli
from trimtab.launch import peak_memory
from trimtab.launch.peak_memory import peak_rss_mb, reset_peak
from trimtab.runs import read_object


def allocate(out: Path, mb: int) -> None:
    """A stage that needs ``mb`` megabytes for a moment."""
    assert int(np.ones(mb * 2**20, np.uint8).sum()) == mb * 2**20


def test_a_reset_forgets_what_was_freed() -> None:
    if not reset_peak():
        pytest.skip("the system cannot reset the peak")
    start = peak_rss_mb()
    allocate(Path(), 200)
    assert 180 < peak_rss_mb() - start < 260
    assert reset_peak()
    assert peak_rss_mb() < start + 60


def recipe(folder: Path) -> list[str]:
    stages = {
        name: {"type": "function", "function": f"{__name__}:allocate", "options": {"mb": mb}}
        for name, mb in (("large", 300), ("small", 1))
    }
    (folder / "r.yaml").write_text(yaml.safe_dump({"out": str(folder / "o"), "stages": stages}))
    return ["run", str(folder / "r.yaml")]


def test_each_stage_has_its_own_peak(tmp_path: Path) -> None:
    if not reset_peak():
        pytest.skip("the system cannot reset the peak")
    cli(recipe(tmp_path))
    large, small = (read_object(tmp_path / "o" / s / "stage.json") for s in ("large", "small"))
    assert large["peak_of"] == small["peak_of"] == "stage"
    assert large["peak_rss_mb"] > small["peak_rss_mb"] + 200
    summary = read_object(tmp_path / "o" / "summary.json")
    assert summary["peak_rss_mb"] == large["peak_rss_mb"]


def test_without_a_reset_the_peak_is_that_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peak_memory, "_CLEAR", tmp_path / "absent" / "clear_refs")
    cli(recipe(tmp_path))
    large, small = (read_object(tmp_path / "o" / s / "stage.json") for s in ("large", "small"))
    assert large["peak_of"] == small["peak_of"] == "process"
    assert small["peak_rss_mb"] >= large["peak_rss_mb"]
