"""Commands as processes: start, wait for a number of steps, read the weights.

Starting Python and importing torch, transformers and peft takes about ten seconds of processor time. ``Forked``
takes none of it: its processes are forked from a server that has imported the package. They are otherwise
processes like any other, with an environment, a folder and an exit status of their own, and they can be killed.
What must be seen to start by itself uses ``start``.
"""

from __future__ import annotations

import contextlib
import functools
import io
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from trimtab.cli.main import main

ROOT = Path(__file__).parents[2]
PYTHONPATH = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
"""This checkout's package, whatever is installed; ``tests`` for the reward."""
WAIT = 600
"""Seconds until the first steps: importing torch takes minutes on a machine that does much else."""


def start(stage: str, file: Path) -> subprocess.Popen[bytes]:
    """A stage in a new interpreter."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
    command = [sys.executable, "-m", "trimtab", stage, str(file)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@functools.cache
def _server() -> ForkServerContext:
    """Starts the server of this process; it ends with it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.imported"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PYTHONPATH)
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()
    return context


def _trimtab(words: tuple[str, ...]) -> None:
    sys.argv = ["trimtab", *words]
    main(words)


def _script(words: tuple[str, ...]) -> None:
    sys.argv = list(words)
    runpy.run_path(words[0], run_name="__main__")


def _child(
    program: Callable[[tuple[str, ...]], None],
    words: tuple[str, ...],
    folder: Path,
    env: Mapping[str, str],
    outputs: tuple[Path, Path],
) -> None:
    for standard, file in enumerate(outputs, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT), standard)
    for text in (sys.stdout, sys.stderr):
        assert isinstance(text, io.TextIOWrapper)
        text.reconfigure(line_buffering=True)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    program(words)


class Forked:
    """``trimtab WORDS``, or with ``script`` the Python file ``WORDS[0]``, in a process of its own.

    Args:
        words: The arguments; of a script, its file first.
        folder: The working folder; by default this checkout.
        env: Variables besides those of this process.
        script: Run a file in place of a command.
        output: File to which both streams are appended; by default a temporary one.
    """

    def __init__(
        self,
        *words: str,
        folder: Path = ROOT,
        env: Mapping[str, str] | None = None,
        script: bool = False,
        output: Path | None = None,
    ) -> None:
        if output is None:
            self._place = tempfile.TemporaryDirectory(prefix="trimtab-output-")
            place = Path(self._place.name)
            self._outputs = place / "stdout", place / "stderr"
        else:
            self._outputs = output, output
        variables = {**os.environ, **(env or {})}
        program = _script if script else _trimtab
        self.process = _server().Process(
            target=_child, args=(program, words, folder, variables, self._outputs), daemon=False
        )
        self.process.start()

    @property
    def pid(self) -> int:
        """Its number."""
        assert self.process.pid is not None
        return self.process.pid

    def poll(self) -> int | None:
        """The exit status; None while it runs, negative after a signal."""
        return self.process.exitcode

    def stdout(self) -> str:
        """What it has written so far to standard output."""
        file = self._outputs[0]  # there is none before it has begun
        return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""

    def output(self) -> str:
        """What it has written so far to both streams."""
        texts = [
            f.read_text(encoding="utf-8", errors="replace") for f in self._outputs if f.exists()
        ]
        return "".join(texts)

    def kill(self) -> None:
        """Kill it."""
        self.process.kill()

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self, timeout: float = 600) -> int:
        """The exit status, once it has ended.

        Raises:
            TimeoutError: it did not within ``timeout`` seconds; it is killed.
        """
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise TimeoutError(f"still running after {timeout} s: {self.output()}")
        return self.process.exitcode

    def finish(self, status: int = 0) -> str:
        """What it wrote; it must end with ``status``."""
        assert self.wait() == status, self.output()
        return self.output()


def run_here(*words: str) -> str:
    """What ``trimtab WORDS`` prints, run in this process; it must succeed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main(words)
    return printed.getvalue()


def weights(out: Path) -> bytes:
    """The bytes of the exported model."""
    return (out / "model" / "model.safetensors").read_bytes()


def kill_midway(stage: str, file: Path, out: Path, steps: int = 5) -> None:
    """Start a stage and kill it once its run in ``out`` has logged ``steps`` steps, before it ends."""
    for _ in range(5):
        process = Forked(stage, str(file))
        wait_for(out, steps, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if not (out / "model").exists():
            return
        shutil.rmtree(out)  # it was faster
    raise AssertionError("it ended before it could be killed, five times")


def wait_for(out: Path, lines: int, process: Forked) -> None:
    """Wait until the run in ``out`` has logged ``lines`` steps."""
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        metrics_file = out / "metrics.jsonl"
        if metrics_file.is_file() and metrics_file.read_bytes().count(b"\n") >= lines:
            return
        assert process.poll() is None, process.output()
        time.sleep(0.005)
    process.kill()
    raise AssertionError(f"no progress in {WAIT} s")
