"""Ray Train starts the ranks: a run with faults ends bit for bit as one of torchrun without."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.scale.conftest import ROOT
from tests.support import folders
from trimtab.config import build
from trimtab.errors import ConfigError, UserError
from trimtab.launch.commands import find_command
from trimtab.runs import read_metrics
from trimtab.train.rl_config import RLConfig

pytestmark = [
    pytest.mark.slow,
    # Two Ray trainings with three restarts each take minutes.
    pytest.mark.skipif(os.environ.get("TRIMTAB_SCALE") != "all", reason="make scale-check"),
]
STEPS = 5


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray_train")
    folders.model_folder(folder / "model")
    folders.prompts(folder / "prompts.jsonl", 24)
    return folder


def settings(base: Path, out: Path, launcher: str, faults: Path | None, **launch: Any) -> Any:
    reward = {"name": "faulty", "function": "tests.scale.test_ray_train:faulty",
              "options": {"marks": str(faults / "step") if faults else ""}}  # fmt: skip
    return folders.rl_settings(
        base, out, steps=STEPS, rewards=[reward], loop={"save_steps": 1},
        launch={"type": launcher, "trainers": 2, "timeout": 60, **launch},
    )  # fmt: skip


def faulty(
    prompts: list[str], completions: list[str], marks: str, trainer_state: Any, **_: Any
) -> list[float]:
    """A reward that, once each, breaks its contract, ends its process, and kills the other rank."""
    step = trainer_state.global_step
    # A prefix: the content of a folder that is named would be part of what the run was made from.
    mark = Path(f"{marks}-{step}")
    if marks and step in (1, 2, 3) and not mark.exists():
        mark.touch()
        if step == 1:
            return []
        if step == 2:
            os._exit(3)
        others = [p for p in psutil.process_iter() if "RayTrainWorker" in " ".join(_words(p))]
        for process in others:
            if process.pid != os.getpid():
                process.send_signal(signal.SIGKILL)
    return folders.wordy(prompts, completions)


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_faults_under_ray_leave_the_result_of_torchrun(
    base: Path, tmp_path: Path, local_ray: None
) -> None:
    file = tmp_path / "rl.yaml"
    file.write_text(yaml.safe_dump(settings(base, tmp_path / "torchrun", "torchrun", None)))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "trimtab", "rl", str(file)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    faults = tmp_path / "faults"
    faults.mkdir()
    values = settings(base, tmp_path / "ray", "ray", faults, restarts=3)
    find_command("rl").run(build(RLConfig, values))
    assert sorted(p.name for p in faults.iterdir()) == ["step-1", "step-2", "step-3"]
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("torchrun", "ray")]
    assert files[0].read_bytes() == files[1].read_bytes()
    steps = [m["step"] for m in read_metrics(tmp_path / "ray")]
    assert steps == list(range(1, STEPS + 1))


def test_too_many_faults_are_reported(base: Path, tmp_path: Path, local_ray: None) -> None:
    faults = tmp_path / "faults"
    faults.mkdir()
    values = settings(base, tmp_path / "ray", "ray", faults, restarts=0)
    with pytest.raises(UserError, match=r"rank \d failed after 0 restarts: .*Run the same command"):
        find_command("rl").run(build(RLConfig, values))


def test_more_servers_than_gpus_are_refused_before_a_worker_starts(
    base: Path, tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 4.0})
    values = settings(base, tmp_path / "ray", "ray", None)
    values["rollout"] = {"engine": "vllm", "servers": 2, "gpus_per_server": 2}
    message = "2 servers of 2 GPUs and 2 for training are 6 GPUs, and the cluster has 4"
    with pytest.raises(ConfigError, match=message):
        find_command("rl").run(build(RLConfig, values))
