"""What a stage leaves for whoever watches it: heartbeat, ``run.log``, and calls of ``on_finding``."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import folders
from tests.support.processes import start, wait_for
from trimtab.config import build
from trimtab.launch.plan import plan
from trimtab.models import checkpoint
from trimtab.runs.run_status import status_of
from trimtab.train.rl import RLConfig, RLStage
from trimtab.train.sft import SFTConfig, SFTStage
from trimtab.train.sft import main as train_sft

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    folders.model_folder(folder / "model")
    folders.demonstrations(folder / "demos.jsonl")
    folders.prompts(folder / "prompts.jsonl")
    return folder


def hook(tmp_path: Path, code: str = "") -> str:
    """A command that appends each finding to ``calls.jsonl``."""
    script = tmp_path / "hook.py"
    file = str(tmp_path / "calls.jsonl")
    script.write_text(f"import sys\nopen({file!r}, 'a').write(sys.stdin.read())\n{code}")
    return f"{sys.executable} {script}"


def calls(tmp_path: Path) -> list[dict[str, Any]]:
    file = tmp_path / "calls.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def sft(base: Path, out: Path, **loop: Any) -> dict[str, Any]:
    return {
        "out": str(out), "model": {"path": str(base / "model"), "device": "cpu"},
        "data": {"path": str(base / "demos.jsonl")}, "epochs": 1, "batch_size": 16,
        "optim": {"lr": 1e-3}, "loop": {"token_budget": 512, **loop},
    }  # fmt: skip


def test_a_run_that_ends_says_so(base: Path, tmp_path: Path) -> None:
    train_sft(build(SFTConfig, sft(base, tmp_path / "run", on_finding=hook(tmp_path))))
    status = status_of(tmp_path / "run")
    assert (status.state, status.step, status.steps) == ("finished", 3, 3)
    assert status.metrics["step"] == 3 and calls(tmp_path) == []


def test_a_run_that_fails_says_so_and_calls(base: Path, tmp_path: Path) -> None:
    settings = sft(base, tmp_path / "run", on_finding=hook(tmp_path, "sys.exit(1)"))

    class Broken(SFTStage):
        def step(self, index: int) -> dict[str, float]:
            if index == 1:
                raise RuntimeError("it broke")
            return super().step(index)

    from trimtab.train.loop import run_stage

    with pytest.raises(RuntimeError, match="it broke"):
        run_stage(Broken, build(SFTConfig, settings))
    status = status_of(tmp_path / "run")
    assert (status.state, status.step, status.reason) == ("failed", 1, "RuntimeError: it broke")
    [call] = calls(tmp_path)
    assert (call["name"], call["step"], call["message"]) == (
        "run-failed",
        1,
        "RuntimeError: it broke",
    )
    text = (tmp_path / "run" / "run.log").read_text()
    assert "RuntimeError: it broke" in text and "Traceback" in text


def test_a_finding_calls_once_and_a_hanging_command_delays_nothing(
    base: Path, tmp_path: Path
) -> None:
    settings = folders.rl_settings(
        base,
        tmp_path / "run",
        rewards=[{"name": "constant", "function": "tests.train.test_watched:constant"}],
        steps=8,
        loop={
            "doctor_steps": 4,
            "sample_steps": 1,
            "on_finding": hook(tmp_path, "import time; time.sleep(60)"),
            "on_finding_timeout": 2,
        },
    )
    from trimtab.train.rl import main

    main(build(RLConfig, settings))
    names = [call["name"] for call in calls(tmp_path)]
    assert names.count("reward-pipe") == 1 and len(names) == len(set(names))
    assert status_of(tmp_path / "run").state == "finished"
    assert "did not end within 2 s and was killed" in (tmp_path / "run" / "run.log").read_text()


def constant(completions: list[str], **_: object) -> list[float]:
    return [0.5 for _ in completions]


@pytest.mark.parametrize(
    ("number", "state"), [(signal.SIGTERM, "stopped"), (signal.SIGKILL, "failed")]
)
def test_a_run_that_is_stopped_or_killed(
    base: Path, tmp_path: Path, number: int, state: str
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**sft(base, tmp_path / "run"), "epochs": 500}))
    process = start("sft", file)
    wait_for(tmp_path / "run", 3, process)
    assert status_of(tmp_path / "run").state == "alive"
    process.send_signal(number)
    process.wait(timeout=60)
    assert status_of(tmp_path / "run").state == state


def test_the_plan_predicts_the_disk(base: Path, tmp_path: Path) -> None:
    values = sft(base, tmp_path / "run", save_steps=1, save_total_limit=1)
    need = plan(SFTStage, build(SFTConfig, values)).disk
    train_sft(build(SFTConfig, values))
    [saved] = (tmp_path / "run" / "checkpoints").glob("step-*")
    files = sum(f.stat().st_size for f in saved.glob("*.safetensors"))
    assert need.checkpoint == pytest.approx(files, rel=0.1) and need.checkpoints == 2
    exported = (tmp_path / "run" / "model" / "model.safetensors").stat().st_size
    assert need.export == pytest.approx(exported, rel=0.1)
    metrics = (tmp_path / "run" / "metrics.jsonl").stat().st_size
    assert need.metrics == pytest.approx(metrics, rel=0.5)
    assert "2 checkpoints of" in need.text() and "are free at" in need.text()
    assert checkpoint.latest(tmp_path / "run" / "checkpoints") is not None


def test_the_plan_predicts_sample_tables(base: Path, tmp_path: Path) -> None:
    values = folders.rl_settings(base, tmp_path / "run", loop={"sample_steps": 2})
    need = plan(RLStage, build(RLConfig, values)).disk
    from trimtab.train.rl import main

    main(build(RLConfig, values))
    sizes = [f.stat().st_size for f in (tmp_path / "run" / "samples").glob("*.parquet")]
    assert need.tables == len(sizes) == 3
    assert need.table == pytest.approx(sum(sizes) / 3, rel=0.5)
