"""A run that was killed ends with the bytes of a run that was not."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import folders
from tests.support.processes import Forked, kill_midway, run_here, start, wait_for, weights
from tests.support.scorecard import scorecard_only
from tests.support.small_runs import command_of, small_run
from trimtab.runs import read_metrics

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.every_file(tmp_path_factory.mktemp("base"))


def rarely(stage: str) -> Any:
    return pytest.param(stage, marks=scorecard_only)


@pytest.mark.parametrize("stage", ["sft", "reward", "rl", rarely("dapo"), "online_dpo"])
def test_kill_and_resume_is_byte_equal(stage: str, base: Path, tmp_path: Path) -> None:
    uninterrupted, broken = tmp_path / "whole", tmp_path / "broken"
    files: dict[str, Path] = {}
    for name, out in (("whole", uninterrupted), ("broken", broken)):
        files[name] = tmp_path / f"{name}.yaml"
        files[name].write_text(yaml.safe_dump(small_run(stage, base, out)))
    # In another process than the killed one: the order of sets of strings may differ.
    command = command_of(stage)
    run_here(command, str(files["whole"]))

    kill_midway(command, files["broken"], broken)
    assert "resuming from step" in Forked(command, str(files["broken"])).finish()
    assert weights(uninterrupted) == weights(broken)
    steps = [row["step"] for row in read_metrics(broken)]
    assert steps == sorted(set(steps)), "a step was recorded twice"


def terminated(stage: str, base: Path, out: Path, *script: str) -> tuple[int, list[int], float]:
    """Start a stage and send it SIGTERM after three steps.

    Args:
        script: A Python file in place of the command line.

    Returns:
        The exit status, the steps of its checkpoints, and the seconds until it ended.
    """
    settings = small_run(stage, base, out)
    settings["loop"]["save_steps"] = 0
    settings |= {"steps": 500} if "steps" in settings else {"epochs": 200}
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(settings))
    process = Forked(*script, command_of(stage), str(file), script=bool(script))
    wait_for(out, 3, process)
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code = process.wait(timeout=60)
    saved = [int(f.name.removeprefix("step-")) for f in (out / "checkpoints").glob("step-*")]
    return code, saved, time.monotonic() - started


@pytest.mark.parametrize("stage", ["sft", "rl", *map(rarely, ["reward", "dapo", "online_dpo"])])
def test_sigterm_saves_and_exits_143(
    stage: str, base: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    code, saved, seconds = terminated(stage, base, tmp_path / "run")
    assert (code, len(saved)) == (143, 1), "nothing was saved"
    assert saved == [read_metrics(tmp_path / "run")[-1]["step"]], "a step is lost"
    record_property("seconds", seconds)
    assert seconds < 10 + 5  # a step takes less than a second


def test_a_signal_that_is_not_received_is_noticed(base: Path, tmp_path: Path) -> None:
    deaf = str(ROOT / "tests" / "support" / "deaf.py")
    code, saved, _ = terminated("sft", base, tmp_path / "run", deaf)
    assert (code, saved) == (-signal.SIGTERM, [])


def test_losing_the_kl_controller_is_noticed(base: Path, tmp_path: Path) -> None:
    """The byte-equal test can fail: without the controller's state the runs part."""
    from trimtab.config import build
    from trimtab.runs import Run
    from trimtab.train.loop import fit
    from trimtab.train.rl import RLConfig, RLStage

    def train(out: Path, steps: int, forget: bool) -> bytes:
        settings = small_run("rl", base, out)
        settings["steps"] = 6
        rl_config = build(RLConfig, settings)
        stage = RLStage(rl_config)
        if forget:
            stage.load = lambda state: None  # type: ignore[method-assign]
        stage.steps = steps
        fit(stage, Run(out), rl_config.loop)
        return weights(out)

    uninterrupted = train(tmp_path / "a", 6, forget=False)
    train(tmp_path / "b", 4, forget=False)
    assert train(tmp_path / "b", 6, forget=False) == uninterrupted
    train(tmp_path / "c", 4, forget=False)
    assert train(tmp_path / "c", 6, forget=True) != uninterrupted


def test_a_run_that_was_trained_says_what_it_reached(base: Path, tmp_path: Path) -> None:
    """Killed after its last checkpoint, before the export: the same command writes the model."""
    out = tmp_path / "run"
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**small_run("sft", base, out), "epochs": 1}))
    message = Forked("sft", str(file)).finish().splitlines()[-1]
    before, summary = weights(out), (out / "summary.json").read_text()
    (out / "model" / "model.safetensors").unlink()
    # In a new interpreter, as a user's.
    again = start("sft", file)
    second_message = again.communicate()[0].decode().splitlines()[-1]
    assert again.returncode == 0
    assert weights(out) == before
    assert second_message == message and "nan" not in second_message
    figures = [json.loads(s) for s in (summary, (out / "summary.json").read_text())]
    for f in figures:
        del f["seconds"]
    assert figures[0] == figures[1]
