"""``trimtab question N --tune``: the rates that are tried, and what is written."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from trimtab.launch.jobs import Job
from trimtab.questions import claim as registry
from trimtab.questions import experiment


def test_every_arm_gets_its_best_rate_beyond_the_edge_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gold of each arm falls with the distance from a rate of its own, seeds differ by a constant."""
    settings = registry.load_settings()[6]
    assert settings.tuning is not None
    rates = settings.tuning.rates
    wanted = dict(zip(settings.tuned, [*rates, rates[-1] * 2, rates[0] / 2] * 3, strict=False))
    ran: list[str] = []

    def run(jobs: Sequence[Job], folder: Path, workers: int, seconds: float) -> None:
        for job in jobs:
            if job.row != "arm" or (folder / job.key / experiment.RESULT).exists():
                continue
            ran.append(job.key)
            gold = job.seed - abs(math.log2(job.args["lr"] / wanted[job.args["arm"]]))
            (folder / job.key).mkdir(parents=True)
            result = {"measures": {"gold": {"value": gold}}}
            (folder / job.key / experiment.RESULT).write_text(json.dumps(result))

    monkeypatch.setattr(experiment, "_run", run)
    assert experiment.tune(6, tmp_path) == wanted
    assert len(ran) == len(set(ran))
    table = json.loads((tmp_path / "6" / experiment.TUNING).read_text())
    assert table["lr"] == wanted
    numbers = {arm: len(table["gold"][arm]) for arm in settings.tuned}
    beyond = {rates[0]: 1, rates[-1]: 1, rates[-1] * 2: 2, rates[0] / 2: 2}
    assert numbers == {arm: len(rates) + beyond.get(rate, 0) for arm, rate in wanted.items()}
