"""One process per run folder: over a second process, a killed owner, its children, and a copied folder."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from trimtab.errors import ConfigError
from trimtab.runs import Run, read_metrics

OWNER = """
    import os, shutil, sys, time
    from pathlib import Path
    from trimtab.runs import Run
    run = Run(sys.argv[1])
    run.log(1, {"loss": 1.0})
    if sys.argv[2] == "copies":
        shutil.copytree(run.path, str(run.path) + "-copy")
    if sys.argv[2] == "forks" and os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(600)
    if sys.argv[2] != "forks":
        print(0, flush=True)
    sys.stdin.read()
    run.log(2, {"loss": 0.5})
"""


def own(folder: Path, action: str) -> tuple[subprocess.Popen[str], int]:
    """A process that has opened a folder, and the id of its child where it has one."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(OWNER), str(folder), action],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_a_copy_made_by_the_owner_does_not_open_its_folder(tmp_path: Path) -> None:
    process, _ = own(tmp_path / "run", "copies")
    with pytest.raises(ConfigError, match=f"process {process.pid} on "):
        Run(tmp_path / "run")
    copy = Run(tmp_path / "run-copy")  # the copied file is no lock
    assert f"process {os.getpid()} " in (copy.path / ".lock").read_text()
    copy.close()
    process.communicate("")
    assert process.returncode == 0
    assert [r["step"] for r in read_metrics(tmp_path / "run")] == [1, 2]
    assert [r["step"] for r in read_metrics(tmp_path / "run-copy")] == [1]


def test_a_lock_of_the_process_would_be_lost_by_the_copy(tmp_path: Path) -> None:
    """The check above can fail: the lock that earlier releases took ends with the copy."""
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("a+") as handle:
        fcntl.lockf(handle, fcntl.LOCK_EX)
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        code = (
            "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        )
        taken = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "run" / ".lock")], check=False
        )
    assert taken.returncode == 0


def test_a_killed_owner_blocks_nothing_though_its_child_lives(tmp_path: Path) -> None:
    process, child = own(tmp_path, "forks")
    with pytest.raises(ConfigError, match="another process is writing"):
        Run(tmp_path)
    process.kill()
    process.wait()
    os.kill(child, 0)  # it is there
    Run(tmp_path).close()
    os.kill(child, signal.SIGKILL)


def test_the_lock_outlives_a_child_that_ends(tmp_path: Path) -> None:
    with Run(tmp_path):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        code = "import sys; from trimtab.runs import Run; Run(sys.argv[1])"
        second = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
        )
    assert "another process is writing" in second.stderr


TRAIN = """
    import fcntl, sys
    if sys.argv[2] == "ignored":
        fcntl.flock = lambda *_: None
    from trimtab.errors import ConfigError
    from trimtab.runs import Run
    try:
        run = Run(sys.argv[1])
    except ConfigError as error:
        print(error, flush=True)
        sys.exit(2)
    run.rewind(0)
    for step in range(1, 101):
        run.log(step, {"loss": 1.0})
        if step == 50:
            print("half", flush=True)
            sys.stdin.readline()
    run.close()
"""


@pytest.mark.parametrize("lock", ["taken", "ignored"])
def test_two_runs_in_one_folder(lock: str, tmp_path: Path) -> None:
    """The second is refused and the first loses nothing; with the lock ignored, rows are lost."""
    words = [sys.executable, "-c", textwrap.dedent(TRAIN), str(tmp_path), lock]
    first, second = (
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    )
    lines = [p.stdout.readline() for p in (first, second)]  # type: ignore[union-attr]
    for process in (first, second):
        try:
            process.communicate("\n")
        except BrokenPipeError:
            process.wait()
    codes = sorted(p.returncode for p in (first, second))
    steps = [r["step"] for r in read_metrics(tmp_path)]
    if lock == "taken":
        assert codes == [0, 2] and sorted(line[:4] for line in lines).count("half") == 1
        assert any("another process is writing to this run folder" in line for line in lines)
        assert steps == list(range(1, 101))
    else:
        assert codes == [0, 0] and steps != list(range(1, 101))
