"""The three examples of CONTRIBUTING.md work as written, each in the files that it names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.folders import tokenizer
from trimtab.rewards.part_config import RewardSpec
from trimtab.rewards.weighted_sum import Rewards
from trimtab.types import Completion, Group

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
REWARD, METHOD, ALARM = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package that a test may add files to."""
    folder = tmp_path / "src" / "trimtab"
    shutil.copytree(ROOT / "src" / "trimtab", folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run(package: Path, code: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(package.parent)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout


def test_a_reward_touches_no_library_file(tmp_path: Path) -> None:
    file = tmp_path / "my_rewards.py"
    file.write_text(REWARD, encoding="utf-8")
    spec = RewardSpec.model_validate({"name": "r", "function": f"{file}:brevity"})
    part = Rewards([spec], tokenizer(), 512, "cpu")
    completions = [Completion(np.array([5]), np.array([True]), text=t) for t in ("one two", "one")]
    part([Group("0", np.array([1]), completions, extra={"answer": "x"})])
    assert [c.reward for c in completions] == [-2 / 50, -1 / 50]


@pytest.mark.slow
def test_a_method_is_one_file(package: Path) -> None:
    (package / "objectives" / "methods" / "batch_grpo.py").write_text(METHOD, encoding="utf-8")
    code = (
        "from trimtab.objectives.methods import METHODS\n"
        "m = METHODS['batch_grpo']()\n"
        "print(m.advantage.baseline, m.group_size)"
    )
    assert run(package, code).split() == ["batch", "1"]


@pytest.mark.slow
def test_an_alarm_is_one_file(package: Path) -> None:
    (package / "doctor" / "alarms" / "sparse_reward.py").write_text(ALARM, encoding="utf-8")
    code = (
        "from pathlib import Path\n"
        "from trimtab.audit.run_settings import RunSettings\n"
        "from trimtab.doctor.alarms import all_alarms\n"
        "from trimtab.doctor.evidence import Evidence\n"
        "alarm = {a.name: a for a in all_alarms()}['sparse-reward']\n"
        "for reward in (0.0, 0.5):\n"
        "    rows = [{'step': s, 'reward/mean': reward} for s in range(1, 21)]\n"
        "    e = Evidence(Path('run'), settings=RunSettings.of({'steps': 20}), rows=rows)\n"
        "    finding = alarm(e)\n"
        "    print(finding.title if finding else 'nothing')"
    )
    assert run(package, code).splitlines() == ["The reward is almost always zero", "nothing"]
