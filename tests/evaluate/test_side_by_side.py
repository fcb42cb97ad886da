"""Side by side and sweep, end to end on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import folders
from trimtab.cli.main import main as cli
from trimtab.config import build
from trimtab.errors import ConfigError
from trimtab.evaluate import side_by_side, side_page
from trimtab.launch import sweep
from trimtab.runs import read_metrics
from trimtab.train import rl

WORDY = {"name": "wordy", "function": "tests.support.folders:wordy"}


def settings(base: Path, out: Path, **more: Any) -> dict[str, Any]:
    return {
        "out": str(out), "model": {"path": str(base / "model"), "device": "cpu"},
        "data": {"path": str(base / "prompts.jsonl")}, "rewards": [WORDY],
        "method": {"type": "rloo", "group_size": 4, "kl": {"beta": 0.01}}, "sampling": {"max_new_tokens": 6},
        "steps": 6, "batch_size": 8, "optim": {"lr": 5e-3, "lr_scheduler_type": "constant"}, **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("side")
    folders.model_folder(folder / "model")
    folders.prompts(folder / "prompts.jsonl", 24)
    more = {"loop": {"save_steps": 2, "save_total_limit": 3}}
    rl.main(build(rl.RLConfig, settings(folder, folder / "run", **more)))
    return folder


def test_a_run_side_by_side_as_a_command(base: Path, capsys: Any) -> None:
    run = base / "run"
    cli(["side_by_side", str(run), "--data", str(base / "prompts.jsonl"), "--rewards",
         "[{name: wordy, function: 'tests.support.folders:wordy'}]", "--sampling.max_new_tokens", "6",
         "--temperatures", "[0.3]", "--device", "cpu"])  # fmt: skip
    told = json.loads((run / "side-by-side" / "side.json").read_text())
    assert list(told) == ["start", "step 2", "step 4", "step 6", "last", "T=0.3"]
    assert told["start"]["win_rate"]["mean"] == 0.5
    assert told["start"]["win_rate_length_controlled"]["mean"] == pytest.approx(0.5)
    # The last checkpoint and the exported model are the same policy.
    assert told["step 6"] == told["last"] != told["start"]
    assert told["T=0.3"]["style"]["distinct_2"] <= told["last"]["style"]["distinct_2"] + 0.1
    page = (run / "side-by-side" / "side.html").read_text()
    assert "Side by side" in page and "default-src &#39;none&#39;" in page and "<script" not in page
    assert "at equal length" in capsys.readouterr().out


def test_models_by_name_and_a_judge(base: Path, tmp_path: Path) -> None:
    model = {"path": str(base / "model"), "device": "cpu"}
    given = {
        "models": {"a": model, "b": {"path": str(base / "run" / "model"), "device": "cpu"}},
        "data": str(base / "prompts.jsonl"), "out": str(tmp_path), "sampling": {"max_new_tokens": 6},
        "rewards": [{"name": "j", "judge": "tests.support.folders:wordier"}], "device": "cpu",
    }  # fmt: skip
    told = side_by_side.main(build(side_by_side.SideConfig, given))
    assert told["a"]["win_rate"]["mean"] == 0.5 and told["b"]["compared"] == 24


def test_what_is_not_there_is_named(base: Path) -> None:
    given = {"run": str(base / "run"), "data": str(base / "prompts.jsonl"), "rewards": [WORDY]}
    with pytest.raises(ConfigError, match=r"no step 3; there are 2, 4, 6"):
        side_by_side.main(build(side_by_side.SideConfig, {**given, "steps": [3], "device": "cpu"}))
    with pytest.raises(ConfigError, match="give a run"):
        build(side_by_side.SideConfig, {"data": "x", "rewards": [WORDY]})


def test_hostile_answers_are_inert(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>"
    at = {"mean": 0.5, "low": 0.4, "high": 0.6}
    look = {k: 0.5 for key, _, _ in side_page.STYLES for k in (key, f"{key}_low", f"{key}_high")}
    one = {
        "style": look, "openings": [(bad, 1.0)], "truncated": 0.0, "gold": at, "win_rate": at,
        "win_rate_length_controlled": at, "compared": 1,
    }  # fmt: skip
    row = {"prompt": bad, bad: bad, f"scores {bad}": '{"gold": 1.0}', "b": bad, "scores b": '{"gold": 0.0}'}  # fmt: skip
    side_page.write_page(tmp_path, {bad: one, "b": one}, [row], "gold")
    assert "<script" not in (tmp_path / "side.html").read_text()


def test_a_sweep_as_a_command(base: Path, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "rl.yaml"
    gold = {"name": "gold", "function": "tests.support.folders:wordy", "weight": 0}
    given = settings(base, tmp_path / "unused", rewards=[WORDY, gold])
    del given["out"]
    file.write_text(yaml.safe_dump(given))
    command = ["sweep", str(file), "--grid.method.kl.beta", "[0.001, 1.0]", "--out",
               str(tmp_path / "s"), "--steps", "3", "--workers", "2", "--tail", "2"]  # fmt: skip
    cli(command)
    told = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert [p["method.kl.beta"] for p in told["points"]] == [0.001, 1.0]
    assert all(p["gold"] == p["reward"] and p["kl"] is not None for p in told["points"])
    assert set(told["recommended"]["method.kl.beta"]) <= {0.001, 1.0}
    assert "Recommended" in (tmp_path / "s" / "sweep.html").read_text()
    runs = [p.parent for p in (tmp_path / "s").glob("*/metrics.jsonl")]
    assert len(runs) == 2 and all(len(read_metrics(r)) == 3 for r in runs)
    capsys.readouterr()
    cli(command)
    assert "2 whole" in capsys.readouterr().out


def test_a_point_that_cannot_be_is_refused_before_any_runs(base: Path, tmp_path: Path) -> None:
    given = {**settings(base, tmp_path / "s"), "grid": {"optim.lr": [1e-4, -1.0]}}
    with pytest.raises(ConfigError, match=r"lr -1\.0, seed 0: optim\.lr"):
        sweep.main(build(sweep.SweepConfig, given))
    assert not (tmp_path / "s").exists()
    with pytest.raises(ConfigError, match="list of values"):
        sweep.plan(build(sweep.SweepConfig, {**given, "grid": {"optim": {"lr": 1.0}}}))


def test_the_recommendation_is_what_cannot_be_told_from_the_best() -> None:
    points = [
        {"b": 0.0, "gold": 0.5, "reward": 3.0, "error": 0.01},
        {"b": 0.1, "gold": 0.79, "reward": 2.0, "error": 0.01},
        {"b": 0.2, "gold": 0.8, "reward": 1.0, "error": 0.01},
    ]
    assert sweep.recommend(points, ["b"]) == {"b": [0.1, 0.2]}
    blind = [{**p, "gold": None} for p in points]
    assert sweep.recommend(blind, ["b"])["b"] == [0.0]
