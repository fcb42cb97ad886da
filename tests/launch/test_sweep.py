"""A sweep over a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import folders
from tests.support.folders import WORDY
from trimtab.cli.main import main as cli
from trimtab.config import build
from trimtab.errors import ConfigError
from trimtab.launch import sweep
from trimtab.runs import read_metrics


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    folders.model_folder(folder / "model")
    folders.prompts(folder / "prompts.jsonl", 24)
    return folder


@pytest.mark.slow
def test_a_sweep_as_a_command(base: Path, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "rl.yaml"
    gold = {"name": "gold", "function": "tests.support.folders:wordy", "weight": 0}
    settings = folders.rl_settings(base, tmp_path / "unused", rewards=[WORDY, gold])
    del settings["out"]
    file.write_text(yaml.safe_dump(settings))
    command = ["sweep", str(file), "--grid.method.kl.beta", "[0.001, 1.0]", "--out",
               str(tmp_path / "s"), "--steps", "3", "--workers", "2", "--tail", "2"]  # fmt: skip
    cli(command)
    results = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert [p["method.kl.beta"] for p in results["points"]] == [0.001, 1.0]
    assert all(p["gold"] == p["reward"] and p["kl"] is not None for p in results["points"])
    assert set(results["recommended"]["method.kl.beta"]) <= {0.001, 1.0}
    assert "Recommended" in (tmp_path / "s" / "sweep.html").read_text()
    runs = [p.parent for p in (tmp_path / "s").glob("*/metrics.jsonl")]
    assert len(runs) == 2 and all(len(read_metrics(r)) == 3 for r in runs)
    capsys.readouterr()
    cli(command)
    assert "2 finished" in capsys.readouterr().out


def test_a_point_that_cannot_be_is_refused_before_any_runs(base: Path, tmp_path: Path) -> None:
    settings = {**folders.rl_settings(base, tmp_path / "s"), "grid": {"optim.lr": [1e-4, -1.0]}}
    with pytest.raises(ConfigError, match=r"lr -1\.0, seed 0: optim\.lr"):
        sweep.main(build(sweep.SweepConfig, settings))
    assert not (tmp_path / "s").exists()
    with pytest.raises(ConfigError, match="list of values"):
        sweep.plan(build(sweep.SweepConfig, {**settings, "grid": {"optim": {"lr": 1.0}}}))


def test_the_recommendation_is_what_cannot_be_told_from_the_best() -> None:
    def point(b: float, gold: float | None, reward: float) -> sweep.Point:
        return sweep.Point(f"b {b}", {"b": b}, 1, 0.1, reward, gold, 8.0, 1.0, 0.01, [])

    figures = [(0.0, 0.5, 3.0), (0.1, 0.79, 2.0), (0.2, 0.8, 1.0)]
    assert sweep.recommend([point(*f) for f in figures], ["b"]) == {"b": [0.1, 0.2]}
    without_gold = [point(b, None, reward) for b, _, reward in figures]
    assert sweep.recommend(without_gold, ["b"])["b"] == [0.0]
