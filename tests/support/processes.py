"""Stages as processes: start, wait for a number of steps, read the weights."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
WAIT = 600
"""Seconds until the first steps: importing torch takes minutes on a machine that does much else."""


def start(stage: str, file: Path) -> subprocess.Popen[bytes]:
    # This checkout's package, whatever is installed; ``tests`` for the reward.
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", "trimtab", stage, str(file)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def weights(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


def wait_for(out: Path, lines: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        metrics_file = out / "metrics.jsonl"
        if metrics_file.is_file() and metrics_file.read_bytes().count(b"\n") >= lines:
            return
        assert process.poll() is None, process.stdout.read().decode()  # type: ignore[union-attr]
        time.sleep(0.01)
    process.kill()
    raise AssertionError(f"no progress in {WAIT} s")
