"""A slice of ``make learning``: PPO must begin to learn."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ppo_begins_to_learn(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.learning", "--slice", "--out", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "slice-ppo-0" in done.stdout
    assert "gain" in done.stdout
