"""No step leaves reference cycles: their tensors would stay in memory until a full garbage collection."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import folders
from tests.support.processes import run_here
from tests.support.small_runs import STAGES, command_of, small_run
from trimtab.runs import Run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.every_file(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_leaves_no_cycles(
    stage: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.yaml"
    settings = small_run(stage, base, tmp_path / "run")
    # A save leaves a few cycles without tensors, and samples may load the start model for a moment.
    settings["loop"] |= {"save_steps": 0, "sample_steps": 0}
    settings |= {"steps": 8} if "steps" in settings else {"epochs": 2}
    file.write_text(yaml.safe_dump(settings))
    unreachable: list[int] = []
    log = Run.log

    def collect_and_log(self: Run, step: int, metrics: Any) -> None:
        unreachable.append(gc.collect())
        log(self, step, metrics)

    monkeypatch.setattr(Run, "log", collect_and_log)
    gc.disable()
    gc.freeze()  # what exists already takes long to search
    try:
        run_here(command_of(stage), str(file))
    finally:
        gc.unfreeze()
        gc.enable()
    # The first steps import modules and fill caches.
    assert len(unreachable) >= 6 and not any(unreachable[3:]), unreachable
