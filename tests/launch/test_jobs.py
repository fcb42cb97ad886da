"""Jobs in processes: kept when done, reported when they fail, ended with their parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from trimtab.launch import jobs
from trimtab.launch.jobs import Job, Process

HERE = "tests.launch.test_jobs"


def square(out: Path, seed: int, *, number: float) -> dict[str, Any]:
    """Counts its calls in a file, and fails for negative numbers."""
    with open(out / "calls", "a") as calls:
        calls.write("x")
    if number < 0:
        raise ValueError("negative")
    return {"square": number**2, "seed": seed}


def wait_long(out: Path, seed: int) -> dict[str, Any]:
    """Says who it is, and sleeps."""
    (out / "pid").write_text(str(os.getpid()))
    time.sleep(120)
    return {}


def test_jobs_are_kept_and_failures_reported(tmp_path: Path) -> None:
    todo = [Job("row", f"n{n}", 0, f"{HERE}:square", {"number": n}) for n in (1.0, -2.0, 3.0)]
    lines: list[str] = []
    failed = jobs.run(todo, tmp_path, 1, batch=3, report=lines.append)
    # One process runs all three; the one that raises ends it, so the third has not run.
    assert set(failed) == {"row-n-2.0-0", "row-n3.0-0"}
    assert "ValueError: negative" in (tmp_path / "row-n1.0-0" / "log").read_text()
    assert lines[0] == "0 of 3 jobs are done" and any("FAILED, exit 1" in x for x in lines)
    rest = [todo[0], todo[2]]
    assert jobs.run(rest, tmp_path, 2, report=lines.append) == {}
    result = json.loads((tmp_path / "row-n3.0-0" / "result.json").read_text())
    assert (result["square"], result["seed"]) == (9.0, 0) and result["seconds"] >= 0
    assert (tmp_path / "row-n1.0-0" / "calls").read_text() == "x"


RUNNER = f"""
from pathlib import Path
import sys
from trimtab.launch import jobs
jobs.run([jobs.Job("row", "long", 0, "{HERE}:wait_long")], Path(sys.argv[1]), 1)
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_a_job_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, str(tmp_path)])
    pid_file = tmp_path / "row-long-0" / "pid"
    end = time.monotonic() + 120
    while not pid_file.is_file() or not pid_file.read_text():
        assert time.monotonic() < end and runner.poll() is None
        time.sleep(0.1)
    pid = int(pid_file.read_text())
    assert alive(pid)
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    end = time.monotonic() + 20
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.1)
    assert not alive(pid)


def test_an_error_ends_the_processes_that_run(tmp_path: Path) -> None:
    command = (sys.executable, "-c", "import time; time.sleep(100)")
    started = time.monotonic()

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs.run_processes(
            [Process("sleeps", command, tmp_path / "log")], 1, ended=lambda *_: None, poll=stop
        )
    assert time.monotonic() - started < 60
