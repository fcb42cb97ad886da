"""Independent jobs on a real Ray: retries, resuming, and results equal to those of one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.scale.conftest import JUDGE_KEY
from tests.support import folders, judging
from tests.support.folders import WORDY
from trimtab.config import build
from trimtab.datagen import best_of_n, judge_labels, sample
from trimtab.errors import ConfigError, DataError
from trimtab.launch import sweep
from trimtab.runs import read_samples
from trimtab.runs.ray_jobs import Job, Resources, run_jobs

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
EVERYTHING = os.environ.get("TRIMTAB_SCALE") == "all"
costly = pytest.mark.skipif(not EVERYTHING, reason="make scale-check")
RAY = {"type": "ray", "part_size": 4, "workers": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs")
    folders.model_folder(folder / "model")
    folders.prompts(folder / "prompts.jsonl", 10)
    return folder


def settings(base: Path, out: Path, **more: Any) -> dict[str, Any]:
    return {
        "out": str(out), "model": {"path": str(base / "model"), "device": "cpu"},
        "data": {"path": str(base / "prompts.jsonl")}, "sampling": {"max_new_tokens": 6}, **more,
    }  # fmt: skip


def do(folder: str, number: int, how: str) -> int:
    """A job that leaves a mark each time it is called."""
    marks = list(Path(folder).glob(f"{number}-*"))
    (Path(folder) / f"{number}-{len(marks)}").touch()
    if how == "always" or (how == "once" and not marks):
        raise DataError("this row is bad")
    if how == "killed once" and not marks:
        os.kill(os.getpid(), signal.SIGKILL)
    return 10 * number


def test_a_failed_job_is_tried_once_more_and_then_reported(tmp_path: Path) -> None:
    hows = ["", "once", "killed once", "always", ""]
    jobs = [Job(f"job {i}", do, (str(tmp_path), i, how)) for i, how in enumerate(hows)]
    done: dict[int, int] = {}
    failures = run_jobs(jobs, Resources(), done.__setitem__)
    assert done == {0: 0, 1: 10, 2: 20, 4: 40}
    assert failures == {3: "this row is bad"}
    calls = [len(list(tmp_path.glob(f"{i}-*"))) for i in range(5)]
    assert calls == [1, 2, 2, 2, 1]


def test_a_job_that_no_node_can_take_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"99 CPU cores and 0 GPUs, but no node"):
        run_jobs([Job("large", do)], Resources(threads=99))


def test_parts_on_ray_are_what_one_process_makes(base: Path, tmp_path: Path) -> None:
    here = settings(base, tmp_path / "here", num_completions=2, keep_truncated=True)
    there = settings(base, tmp_path / "there", num_completions=2, keep_truncated=True, launch=RAY)
    sample.main(build(sample.SampleConfig, here))
    config = build(sample.SampleConfig, there)
    sample.main(config)
    items = (tmp_path / "here" / "items.jsonl").read_bytes()
    assert items == (tmp_path / "there" / "items.jsonl").read_bytes()
    parts = sorted((tmp_path / "there" / "parts").iterdir())
    assert [p.name for p in parts] == [
        "00000000-00000004",
        "00000004-00000008",
        "00000008-00000010",
    ]
    # Resuming does the missing part alone.
    times = [p.stat().st_mtime_ns for p in parts]
    parts[1].unlink()
    (tmp_path / "there" / "items.jsonl").unlink()
    sample.main(config)
    again = [p.stat().st_mtime_ns for p in parts]
    assert (again[0], again[2]) == (times[0], times[2]) and again[1] != times[1]
    assert items == (tmp_path / "there" / "items.jsonl").read_bytes()


@costly
def test_best_of_n_on_ray_is_what_one_process_makes(base: Path, tmp_path: Path) -> None:
    more = {"rewards": [WORDY], "num_completions": 3}
    results: list[Any] = []
    for name, launch in (("here", {}), ("there", RAY)):
        config = settings(base, tmp_path / name, launch=launch, **more)
        summary = best_of_n.main(build(best_of_n.BestOfNConfig, config))
        files = [(tmp_path / name / f).read_bytes() for f in ("best.jsonl", "pairs.jsonl")]
        results.append((summary, files, read_samples(tmp_path / name)))
    assert results[0] == results[1]


def test_a_broken_part_is_named_and_the_others_are_kept(base: Path, tmp_path: Path) -> None:
    broken = {"name": "broken", "function": "tests.scale.test_ray_jobs:refuses_after_four"}
    config = settings(base, tmp_path / "b", rewards=[broken], num_completions=2, launch=RAY)
    with pytest.raises(
        DataError, match=r"(?s)best of n: prompts 9 to 10 failed twice: .*2 parts were"
    ):
        best_of_n.main(build(best_of_n.BestOfNConfig, config))


def refuses_after_four(prompts: list[str], completions: list[str]) -> list[float]:
    """Breaks its contract on a part of fewer than 4 prompts."""
    return [float(len(c)) for c in completions][: 8 if len(completions) == 8 else 1]


def test_a_judge_on_ray_says_the_same_and_keeps_its_cap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = judging.write_items(tmp_path / "items.jsonl", judging.items(8))
    rows: list[bytes] = []
    with judging.endpoint() as one:
        one.key = JUDGE_KEY
        monkeypatch.setenv("JUDGE_TEST_KEY", JUDGE_KEY)
        common = {
            "endpoint": one.url,
            "model": "sim",
            "key_env": "JUDGE_TEST_KEY",
            "data": str(items),
        }
        for name, more in (("here", {}), ("there", {"launch": {**RAY, "workers": 2}})):
            config = {**common, "out": str(tmp_path / name), **more}
            summary = judge_labels.main(build(judge_labels.JudgeConfig, config))
            assert summary.calls == 16 and not summary.failed
            rows.append((tmp_path / name / "rows.jsonl").read_bytes())
        assert rows[0] == rows[1]
        # A second time every reply comes from the one cache.
        assert judge_labels.main(build(judge_labels.JudgeConfig, config)).cached == 16
        capped = {**config, "out": str(tmp_path / "capped"), "max_calls": 5}
        summary = judge_labels.main(build(judge_labels.JudgeConfig, capped))
        (account,) = summary.account.values()
        assert account["calls"] == 5 and summary.calls == 5 and summary.failed["cap"] > 0


@costly
def test_a_sweep_on_ray_trains_the_same_models(base: Path, tmp_path: Path) -> None:
    rl = folders.rl_settings(base, tmp_path / "unused", steps=2)
    weights: list[list[bytes]] = []
    for name, launch in (("here", {}), ("there", {"type": "ray"})):
        config = {**rl, "out": str(tmp_path / name), "grid": {"optim.lr": [1e-3, 5e-3]},
                  "workers": 2, "launch": launch}  # fmt: skip
        sweep.main(build(sweep.SweepConfig, config))
        runs = sorted((tmp_path / name).glob("*/model/model.safetensors"), key=by_rate)
        weights.append([r.read_bytes() for r in runs])
        points = json.loads((tmp_path / name / "sweep.json").read_text())["points"]
        assert len(points) == 2
    assert len(weights[0]) == 2 and weights[0] == weights[1]


def by_rate(weights: Path) -> float:
    """The learning rate of a sweep's run."""
    return yaml.safe_load((weights.parents[1] / "sweep.yaml").read_text())["optim"]["lr"]


@costly
def test_an_interrupted_command_leaves_nothing_running(base: Path, tmp_path: Path) -> None:
    """Ctrl-C goes to the command; its Ray and every worker end with it."""
    file = tmp_path / "sample.yaml"
    launch = {"type": "ray", "part_size": 1, "workers": 1}
    values = settings(base, tmp_path / "s", num_completions=9, tries=10**6, launch=launch)
    file.write_text(yaml.safe_dump(values))
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "trimtab", "sample", str(file)]
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    children: set[psutil.Process] = set()
    deadline = time.monotonic() + 240
    while not any("ray::_work" in " ".join(_cmdline(c)) for c in children):
        assert process.poll() is None, process.stdout.read().decode()  # type: ignore[union-attr]
        assert time.monotonic() < deadline
        time.sleep(0.5)
        children |= set(psutil.Process(process.pid).children(recursive=True))
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    _, alive = psutil.wait_procs(list(children), timeout=30)
    assert not alive


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
