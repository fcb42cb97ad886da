"""The runs of a sweep, as processes of this machine or as jobs of a Ray cluster."""

import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trimtab.config import build
from trimtab.errors import DataError
from trimtab.launch.commands import COMMANDS
from trimtab.launch.jobs import Process, run_processes
from trimtab.runs import Fingerprint, read_summary, redact, require_same, write_atomic
from trimtab.runs.job_launch import JobLaunchSpec
from trimtab.runs.ray_jobs import Job, Resources, run_jobs
from trimtab.terminal_text import SafeFormatter
from trimtab.train.rl_config import RLConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of the sweep."""

    label: str
    """Of its point: the values that are varied."""
    values: dict[str, Any]
    """Value by dotted key."""
    seed: int
    folder: Path
    config: dict[str, Any]
    """The configuration of ``trimtab rl``."""

    @property
    def name(self) -> str:
        """For messages: its point and seed."""
        return f"{self.label}, seed {self.seed}"

    @property
    def file(self) -> Path:
        """Its configuration, secrets redacted."""
        return self.folder / "sweep.yaml"

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.folder / "log"


def run_all(runs: Sequence[PlannedRun], launch: JobLaunchSpec, workers: int, threads: int) -> None:
    """Start the runs that are not finished, and wait for them.

    Args:
        workers: Runs at once; 0 takes half the cores of this machine, or the room of the cluster.
        threads: Of each run.

    Raises:
        ConfigError: a finished run was made from other data, models or reward code.
        DataError: every run failed.
    """
    waiting = [r for r in runs if "seconds" not in read_summary(r.folder)]
    for run in (r for r in runs if r not in waiting):
        require_same(run.folder, Fingerprint.of(build(RLConfig, run.config, run.label)))
    if launch.type == "none":
        workers = workers or max(1, (os.cpu_count() or 2) // 2)
    at_once = f"{workers} at once" if workers else "as many at once as the cluster has room for"
    log.info("sweep: %d runs, %d finished, %s", len(runs), len(runs) - len(waiting), at_once)
    for run in waiting:
        run.folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(redact(run.config), sort_keys=False)
        write_atomic(run.file, text.encode())
    if launch.type == "ray":
        failed = _run_on_ray(waiting, Resources(threads, launch.gpus, workers, fresh=True))
    else:
        failed = _run_here(waiting, workers, threads)
    lines = [f"{run.name}: {why}, see {run.log}" for run, why in failed]
    if len(failed) == len(runs):
        raise DataError(f"every run of the sweep failed, the first: {lines[0]}")
    for line in lines:
        log.warning("failed: %s", line)


def _run_here(
    runs: Sequence[PlannedRun], workers: int, threads: int
) -> list[tuple[PlannedRun, str]]:
    """The runs that failed, and why."""
    by_log = {run.log: run for run in runs}
    failed: list[tuple[PlannedRun, str]] = []

    def ended(process: Process, status: int) -> None:
        if status:
            failed.append((by_log[process.log], f"exit {status}"))
        log.info("  %s: %s", process.name, "FAILED" if status else "done")

    # Only the user may read this folder: a configuration can hold keys of services.
    with tempfile.TemporaryDirectory(prefix="trimtab-sweep-") as private:
        processes: list[Process] = []
        for number, run in enumerate(runs):
            file = Path(private) / f"{number}.yaml"
            file.write_text(yaml.safe_dump(run.config, sort_keys=False), encoding="utf-8")
            command = (sys.executable, "-m", "trimtab", "rl", str(file))
            processes.append(Process(run.name, command, run.log))
        run_processes(processes, workers, threads, ended=ended)
    return failed


def _run_on_ray(runs: Sequence[PlannedRun], resources: Resources) -> list[tuple[PlannedRun, str]]:
    """The runs that failed twice, and why the second time."""
    if not runs:
        return []
    jobs = [Job(run.name, _train, (run.config, str(run.log))) for run in runs]
    failures = run_jobs(jobs, resources, lambda i, _: log.info("  %s: done", runs[i].name))
    return [(runs[i], why) for i, why in failures.items()]


def _train(settings: dict[str, Any], log_file: str) -> None:
    """One run, in a process of its own."""

    def log_failure(kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            log.error("the run failed", exc_info=error)

    handler = logging.FileHandler(log_file)
    handler.setFormatter(SafeFormatter())
    logging.getLogger("trimtab").setLevel(logging.INFO)
    with ExitStack() as stack:
        logging.getLogger().addHandler(handler)
        stack.callback(handler.close)
        stack.callback(logging.getLogger().removeHandler, handler)
        stack.push(log_failure)
        COMMANDS["rl"].run(build(RLConfig, settings, "sweep"))
