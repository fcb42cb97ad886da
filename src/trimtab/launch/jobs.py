"""Work in processes of this machine, some at once; what is done is kept, so a stopped run resumes."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtab.config import import_function
from trimtab.errors import ConfigError
from trimtab.runs import read_object, to_json, write_atomic
from trimtab.runs.lock import lock, unlock

log = logging.getLogger(__name__)

POLL_S = 0.2
_PARENT = "TRIMTAB_JOB_PARENT"
"""Process id of the process that started a job: the job ends with it, however that ends."""
_LOCK_S = 10.0
"""How long a job waits for one of a killed run that still has its folder."""


@dataclass(frozen=True, slots=True)
class Process:
    """A command to run."""

    name: str
    """For messages."""
    command: tuple[str, ...]
    log: Path
    """Gets what it prints."""


def run_processes(
    processes: Sequence[Process],
    workers: int,
    threads: int = 1,
    *,
    ended: Callable[[Process, int], None],
    poll: Callable[[], None] = lambda: None,
) -> None:
    """Run commands, ``workers`` at once, and wait for them; an error here ends those that run.

    Args:
        threads: Of each process (OMP_NUM_THREADS).
        ended: Called with each process and its exit status when it has ended.
        poll: Called five times per second.
    """
    waiting = list(processes)
    running: list[tuple[Process, subprocess.Popen[bytes]]] = []
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), _PARENT: str(os.getpid())}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                process = waiting.pop(0)
                with open(process.log, "wb") as output:
                    child = subprocess.Popen(
                        process.command, stdout=output, stderr=subprocess.STDOUT, env=environment
                    )
                running.append((process, child))
            time.sleep(POLL_S)
            poll()
            for entry in list(running):
                status = entry[1].poll()
                if status is not None:
                    running.remove(entry)
                    ended(entry[0], status)
    finally:
        for _, child in running:
            child.terminate()


@dataclass(frozen=True, slots=True)
class Job:
    """One call of ``module:function(out, seed, **args)``, which returns figures."""

    row: str
    """Which table or phase it belongs to."""
    name: str
    """Method or variant."""
    seed: int
    function: str
    """ "module:function"."""
    args: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def key(self) -> str:
        """Its folder's name."""
        return f"{self.row}-{self.name}-{self.seed}"


RESULT = "result.json"


def run(
    jobs: Sequence[Job],
    out: Path,
    workers: int,
    *,
    batch: int = 1,
    seconds_left: float | None = None,
    report: Callable[[str], None] = log.info,
) -> dict[str, str]:
    """Run every job whose ``result.json`` is not there yet, each in its folder of ``out``.

    Args:
        workers: Processes at once, of one thread each.
        batch: Jobs that one process runs, one after another.
        seconds_left: First estimate of the time all jobs take together; then from those that are done.
        report: Gets a line for each job that ends.

    Returns:
        Why, by key, for the jobs that failed; the others have a result.
    """
    waiting = [j for j in jobs if not (out / j.key / RESULT).is_file()]
    report(f"{len(jobs) - len(waiting)} of {len(jobs)} jobs are done")
    for job in waiting:
        text = to_json({"function": job.function, "seed": job.seed, "args": job.args})
        write_atomic(out / job.key / "job.json", text.encode())
    batches = [waiting[i : i + batch] for i in range(0, len(waiting), batch)]
    module = (sys.executable, "-m", "trimtab.launch.jobs")
    processes = {
        jobs_of_one[0].key: Process(
            jobs_of_one[0].key,
            (*module, *(str(out / j.key) for j in jobs_of_one)),
            out / jobs_of_one[0].key / "log",
        )
        for jobs_of_one in batches
    }
    batch_of = {jobs_of_one[0].key: jobs_of_one for jobs_of_one in batches}
    open_jobs = {j.key: j for j in waiting}
    failed: dict[str, str] = {}
    started = time.monotonic()

    def left() -> str:
        done, spent = len(waiting) - len(open_jobs), time.monotonic() - started
        seconds = spent / done * len(open_jobs) if done else seconds_left
        if seconds_left is not None and 3 * done < len(waiting):
            seconds = seconds_left * len(open_jobs) / len(waiting)  # the first jobs are not typical
        return "" if seconds is None else f", {max(1, round(seconds / 60))} min left"

    def poll() -> None:
        for key in [k for k in open_jobs if (out / k / RESULT).is_file()]:
            del open_jobs[key]
            result = read_object(out / key / RESULT)
            report(f"{key:<40} {headline(result)}  {result['seconds']:.0f} s{left()}")

    def ended(process: Process, status: int) -> None:
        poll()
        for job in batch_of[process.name]:
            if open_jobs.pop(job.key, None) is not None:
                failed[job.key] = f"exit {status}, see {process.log}"
                report(f"{job.key:<40} FAILED, {failed[job.key]}{left()}")

    if waiting and seconds_left is not None:
        report(f"{len(waiting)} jobs, {workers} at once{left()}")
    run_processes(list(processes.values()), workers, ended=ended, poll=poll)
    return failed


def headline(result: dict[str, Any]) -> str:
    """The numbers of a result in a line."""
    return "  ".join(
        f"{k} {v:.3f}" for k, v in result.items() if isinstance(v, float) and k != "seconds"
    )


def _end_with_parent() -> None:
    """Watch the process that started this one, and end when it is gone."""
    parent = os.environ.get(_PARENT)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(POLL_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _lock_when_free(folder: Path) -> None:
    end = time.monotonic() + _LOCK_S
    while True:
        try:
            return lock(folder)
        except ConfigError:
            if time.monotonic() > end:
                raise
            time.sleep(POLL_S)


def run_job(folder: Path) -> None:
    """Run the job that a folder describes, and write its ``result.json`` when it is done."""
    _lock_when_free(folder)
    if not (folder / RESULT).is_file():
        job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        before = time.monotonic()
        result = import_function(job["function"])(folder, job["seed"], **job["args"])
        result["seconds"] = time.monotonic() - before
        write_atomic(folder / RESULT, (to_json(result, indent=1) + "\n").encode())
    unlock(folder)


def main() -> None:
    """Run the jobs in the folders that the command line names."""
    _end_with_parent()
    for folder in sys.argv[1:]:
        run_job(Path(folder))


if __name__ == "__main__":
    main()
