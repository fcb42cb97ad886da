"""The example files for clusters are valid, and their commands and keys exist."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from trimtab.cli.main import main as cli
from trimtab.config import build, override, read_yaml
from trimtab.train.rl_config import RLConfig

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def test_the_configuration_is_one_of_trimtab() -> None:
    config = build(RLConfig, read_yaml(EXAMPLES / "grpo.yaml"))
    assert config.method.type == "grpo" and config.loop.save_steps


def _command(text: str) -> list[str]:
    words = shlex.split(text.replace("\\\n", " "), comments=True)
    start = words.index("trimtab") + 1
    end = words.index("&") if "&" in words else None
    return words[start:end]


def test_slurm(capsys: pytest.CaptureFixture[str]) -> None:
    file = EXAMPLES / "slurm.sh"
    assert subprocess.run(["bash", "-n", str(file)], check=False).returncode == 0
    text = file.read_text()
    options = [line.split()[1] for line in text.splitlines() if line.startswith("#SBATCH")]
    assert options and all(o.startswith("--") for o in options)
    command = _command(text[text.index("srun") :].partition("&")[0])
    assert command == ["grpo", "grpo.yaml"]
    cli(["grpo", str(EXAMPLES / "grpo.yaml"), "--dry-run"])
    assert yaml.safe_load(capsys.readouterr().out)["method"]["type"] == "grpo"


def test_kuberay() -> None:
    job: dict[str, Any] = yaml.safe_load((EXAMPLES / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    name, _, *flags = _command(job["spec"]["entrypoint"])
    assert name == "grpo"
    values: dict[str, Any] = {"launch": {}}
    for flag, value in zip(flags[::2], flags[1::2], strict=True):
        values["launch"][flag.removeprefix("--launch.")] = yaml.safe_load(value)
    merged = override(RLConfig, read_yaml(EXAMPLES / "grpo.yaml"), values)
    launch = build(RLConfig, merged).launch
    cluster = job["spec"]["rayClusterSpec"]
    groups = cluster["workerGroupSpecs"]
    gpus = [
        g["replicas"] * int(c["resources"]["limits"]["nvidia.com/gpu"])
        for g in groups
        for c in g["template"]["spec"]["containers"]
    ]
    assert launch.type == "ray" and launch.trainers == sum(gpus)
    for group in (cluster["headGroupSpec"], *groups):
        spec = group["template"]["spec"]
        mounted = {m["name"] for c in spec["containers"] for m in c["volumeMounts"]}
        assert mounted == {v["name"] for v in spec["volumes"]}
