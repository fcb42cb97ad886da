"""Jobs in processes of one thread each; what is done is kept, so that a stopped run goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """One call of ``module.function(out, seed, **args)``, which returns figures."""

    row: str
    """Which question it answers."""
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


def run(jobs: Sequence[Job], out: Path, workers: int) -> None:
    """Every job whose ``result.json`` is not there yet; a failed one is told and left out."""
    waiting = [j for j in jobs if not (out / j.key / "result.json").is_file()]
    print(f"{len(jobs) - len(waiting)} of {len(jobs)} jobs are done", flush=True)
    running: dict[str, tuple[Job, subprocess.Popen[bytes], float]] = {}
    started, done = time.monotonic(), 0
    while waiting or running:
        while waiting and len(running) < workers:
            job = waiting.pop(0)
            folder = out / job.key
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "job.json").write_text(
                json.dumps({"function": job.function, "seed": job.seed, "args": job.args})
            )
            with open(folder / "log", "wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.learning.jobs", str(folder)],
                    stdout=log, stderr=subprocess.STDOUT,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )  # fmt: skip
            running[job.key] = (job, process, time.monotonic())
        time.sleep(0.2)
        for key, (_, process, since) in list(running.items()):
            if process.poll() is None:
                continue
            del running[key]
            done += 1
            took = time.monotonic() - since
            if process.returncode == 0:
                message = headline(json.loads((out / key / "result.json").read_text()))
            else:
                message = f"FAILED, see {out / key / 'log'}"
            left = (time.monotonic() - started) / done * (len(waiting) + len(running)) / 60
            print(f"{key:<40} {message}  {took:.0f} s, {left:.0f} min left", flush=True)


def headline(result: dict[str, Any]) -> str:
    """The numbers of a result in a line."""
    return "  ".join(
        f"{k} {v:.3f}" for k, v in result.items() if isinstance(v, float) and k != "seconds"
    )


def main() -> None:
    """Run the job in a folder."""
    import importlib

    import torch

    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text())
    module, _, name = job["function"].partition(":")
    before = time.monotonic()
    result = getattr(importlib.import_module(module), name)(folder, job["seed"], **job["args"])
    result["seconds"] = time.monotonic() - before
    text = json.dumps(result, indent=1)
    (folder / "result.json.part").write_text(text)
    (folder / "result.json.part").replace(folder / "result.json")


if __name__ == "__main__":
    main()
