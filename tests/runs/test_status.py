"""``trimtab status``: alive, stuck, finished, stopped, failed; on real processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from trimtab.cli.main import main
from trimtab.errors import DataError
from trimtab.runs import Run
from trimtab.runs.heartbeat import Beat, Heartbeat, process_start, read_beats
from trimtab.runs.run_status import duration, status_of

TRAIN = """
    import sys, time
    from pathlib import Path
    from trimtab.runs.heartbeat import Heartbeat
    heart = Heartbeat(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    heart.begin(0, 100)
    heart.step(1, 100)
    heart.phase("training")
    print("step", flush=True)
    sys.stdin.read()
"""


def train(folder: Path, rank: int = 0, world: int = 1) -> subprocess.Popen[str]:
    """A process that trains a step of a run and then waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(TRAIN), str(folder), str(rank), str(world)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "step\n"
    return process


def code(*words: str) -> int:
    try:
        main(["status", *words])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_a_process_that_trains_hangs_and_dies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = train(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.25, "nll": null}\n{"st')
    (tmp_path / "findings.jsonl").write_text(
        '{"name": "frozen", "title": "It is frozen", "step": 1}\n'
    )
    alive = status_of(tmp_path)
    assert (alive.state, alive.step, alive.steps) == ("alive", 1, 100)
    assert alive.eta_seconds == pytest.approx(99 * alive.step_seconds, rel=0.1, abs=0.1)
    assert code(str(tmp_path)) == 0
    text = capsys.readouterr().out
    assert "alive, step 1/100" in text and "loss 0.25, nll not finite" in text
    assert "last finding: It is frozen, since step 1" in text

    process.send_signal(signal.SIGSTOP)  # it hangs; the process is there
    time.sleep(0.3)
    assert status_of(tmp_path).state == "alive", "60 s of silence are normal by default"
    assert code(str(tmp_path), "--stuck-after", "0.2") == 4
    assert f"process {process.pid} is silent" in capsys.readouterr().out

    process.kill()
    process.wait()
    assert code(str(tmp_path), "--json") == 5
    [row] = json.loads(capsys.readouterr().out)
    assert row["state"] == "failed" and "has ended" in row["reason"]
    assert row["metrics"]["loss"] == 0.25 and row["eta_seconds"] is None


def test_one_dead_rank_is_a_failed_run(tmp_path: Path) -> None:
    first = train(tmp_path, 0, 2)
    assert status_of(tmp_path).state == "alive"
    assert status_of(tmp_path, 1e-9).reason == "1 of 2 ranks have not started"
    second = train(tmp_path, 1, 2)
    assert (status_of(tmp_path).state, status_of(tmp_path).ranks) == ("alive", 2)
    second.kill()
    second.wait()
    status = status_of(tmp_path)
    assert (status.state, status.reason[:7]) == ("failed", "rank 1:")
    first.kill()
    first.wait()
    alone = train(tmp_path)  # resumed on one process: the other's heartbeat is of the run before
    assert (status_of(tmp_path).state, status_of(tmp_path).ranks) == ("alive", 1)
    alone.kill()
    alone.wait()


def test_a_copy_of_a_live_run_is_not_alive(tmp_path: Path) -> None:
    process = train(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert status_of(tmp_path / "run").state == "alive"
    assert status_of(tmp_path / "copy").state == "stopped"
    process.kill()
    process.wait()


def test_a_process_id_that_another_program_got_is_not_the_run(tmp_path: Path) -> None:
    Heartbeat(tmp_path).begin(0, 10)
    assert status_of(tmp_path).state == "alive"
    [beat] = read_beats(tmp_path)
    other = beat.model_copy(update={"started": "1"})
    (tmp_path / "heartbeat.json").write_text(other.model_dump_json())
    assert status_of(tmp_path).state == "failed"
    far = beat.model_copy(update={"host": "far", "time": time.time() - 59, "longest_step": 1.0})
    (tmp_path / "heartbeat.json").write_text(far.model_dump_json())
    assert status_of(tmp_path).state == "alive", (
        "a process elsewhere is judged by its silence alone"
    )
    silent = far.model_copy(update={"time": time.time() - 61})
    (tmp_path / "heartbeat.json").write_text(silent.model_dump_json())
    assert status_of(tmp_path).state == "stuck" and "on far" in status_of(tmp_path).reason


def test_how_a_run_ended(tmp_path: Path) -> None:
    heart = Heartbeat(tmp_path)
    heart.begin(3, 10)
    for phase, state in (("finished", "finished"), ("stopped", "stopped"), ("saving", "alive")):
        heart.phase(phase)  # type: ignore[arg-type]
        assert status_of(tmp_path).state == state
    heart.phase("failed", "ValueError: it broke")
    assert (status_of(tmp_path).state, status_of(tmp_path).reason) == (
        "failed",
        "ValueError: it broke",
    )
    assert code(str(tmp_path)) == 5


def test_folders_of_an_earlier_release_and_no_runs(tmp_path: Path) -> None:
    for folder in (tmp_path / "absent", tmp_path):
        with pytest.raises(DataError, match="run folder"):
            status_of(folder)
    assert code(str(tmp_path)) == 2
    with Run(tmp_path) as run:
        run.log(4, {"loss": 1.0})
        assert (status_of(tmp_path).state, status_of(tmp_path).step) == ("failed", 4)
        run.summary({"loss": 1.0})
        run.model.mkdir()
    assert status_of(tmp_path).state == "finished"


def test_a_heartbeat_is_cheap_and_never_in_the_way(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    heart = Heartbeat(tmp_path)
    heart.begin(0, 10_000)
    since = time.process_time()
    for step in range(1, 10_001):
        heart.step(step, 10_000)
    assert (time.process_time() - since) / 10_000 < 100e-6, "a step may be as short as 10 ms"
    assert Beat.model_validate_json((tmp_path / "heartbeat.json").read_bytes()).steps == 10_000

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    for phase in ("saving", "exporting"):
        heart.phase(phase)  # type: ignore[arg-type]
    assert [r.message for r in caplog.records if "heartbeat" in r.message].__len__() == 1


def test_a_reader_never_sees_half_a_heartbeat(tmp_path: Path) -> None:
    heart = Heartbeat(tmp_path)
    process = os.fork()
    if process == 0:
        for _ in range(2000):
            heart.phase("saving")
        os._exit(0)
    while os.waitpid(process, os.WNOHANG) == (0, 0):
        assert len(read_beats(tmp_path)) == 1


def test_processes_and_durations() -> None:
    assert process_start(os.getpid()).isdigit()
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process_start(child.pid) == "", "a zombie does not run"
    child.wait()
    assert duration(90_061) == "1 d 1 h" and duration(61) == "1 min 1 s"
