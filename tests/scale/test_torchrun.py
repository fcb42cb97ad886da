"""``launch: torchrun`` starts the ranks; a killed one is started again and the run ends as undisturbed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from tests.scale.equality import make_data, settings
from tests.support.processes import start, weights
from trimtab.config import build
from trimtab.errors import ConfigError
from trimtab.launch.commands import find_command
from trimtab.runs import read_metrics
from trimtab.runs.fingerprint import Fingerprint

pytestmark = pytest.mark.slow
EVERYTHING = os.environ.get("TRIMTAB_SCALE") == "all"


def write(row: str, base: Path, out: Path, trainers: int = 2, steps: int = 12) -> Path:
    name, values = settings(row, base)
    loop = {**values["loop"], "save_steps": 1}
    launch = {"type": "torchrun", "trainers": trainers, "restarts": 2, "timeout": 60}
    extent = {"steps": steps} if name == "rl" else {"epochs": steps * 10 / 48}
    file = out.with_suffix(".yaml")
    values |= {"out": str(out), "loop": loop, "launch": launch, **extent}
    file.write_text(yaml.safe_dump(values))
    return file


def rank(process: subprocess.Popen[bytes], number: int) -> psutil.Process:
    """The process of a rank."""
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.environ().get("RANK") == str(number) and "trimtab" in child.cmdline():
            return child
    raise AssertionError("no such rank")


def until_it_trains_again(process: subprocess.Popen[bytes], metrics: Path) -> float:
    """Seconds until another step is recorded; 300 s without one fail with what was printed."""
    started, seen = time.monotonic(), metrics.read_bytes().count(b"\n")
    # A resume drops the lines after the checkpoint, and then adds to them.
    while metrics.read_bytes().count(b"\n") <= seen:
        if process.poll() is None and time.monotonic() > started + 300:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        if process.poll() is not None:
            pytest.fail(process.communicate()[0].decode())
        time.sleep(0.02)
    return time.monotonic() - started


@pytest.mark.skipif(not EVERYTHING, reason="make scale-check runs it")
@pytest.mark.parametrize("row", ["sft.full.whole", "grpo.none.lora"])
def test_a_killed_rank_is_started_again(
    row: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    make_data(tmp_path)
    command = settings(row, tmp_path)[0]
    for name in ("undisturbed", "killed"):
        out = tmp_path / name
        process = start(command, write(row, tmp_path, out))
        deadline = time.monotonic() + 300
        while name == "killed" and time.monotonic() < deadline:
            lines = out / "metrics.jsonl"
            if lines.is_file() and lines.read_bytes().count(b"\n") >= 3:
                rank(process, 1).send_signal(signal.SIGKILL)
                seconds = until_it_trains_again(process, lines)
                record_property("seconds until it trains again", seconds)
                assert seconds <= 60
                break
            assert process.poll() is None
            time.sleep(0.02)
        output, _ = process.communicate(timeout=500)
        assert process.returncode == 0, output.decode()
        assert (b"resuming from step" in output) == (name == "killed"), output.decode()
    assert weights(tmp_path / "killed") == weights(tmp_path / "undisturbed")
    steps = [r["step"] for r in read_metrics(tmp_path / "killed")]
    assert steps == list(range(1, 13)), "one rank writes, and each step once"


def test_launch_is_free_of_the_fingerprint(tmp_path: Path) -> None:
    make_data(tmp_path)
    prints = []
    for row in ("sft.none.whole", "sft.full.whole"):
        for trainers in (2, 4):
            values = yaml.safe_load(write(row, tmp_path, tmp_path / "run", trainers).read_text())
            config = build(find_command("sft").load_config(), values)
            prints.append(Fingerprint.of(config).model_dump(exclude={"defaults"}))
    assert all(p == prints[0] for p in prints[1:])


def test_trainers_need_a_launcher(tmp_path: Path) -> None:
    values = {"model": "x", "data": {"path": "y"}, "launch": {"trainers": 4}}
    with pytest.raises(ConfigError, match=r"trainers: 4 needs type: torchrun"):
        build(find_command("sft").load_config(), values)
