"""``trimtab grpo`` with faults at planned steps: ``python -m tests.scorecard.faulty_run CONFIG PLAN``.

PLAN is a JSON file: {"faults": {step: fault}, "done": folder}. Each fault happens once; its file in ``done``
remembers it over restarts.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from trimtab.cli.main import main as trimtab
from trimtab.runs import Files, Run, fs

LEAK: list[Any] = []


class Faults:
    """Starts the fault of a step once its metrics are written."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.by_step = {int(k): v for k, v in plan["faults"].items()}
        self.done = Path(plan["done"])
        self.leaks = bool(plan.get("leaks"))

    def after(self, step: int, run: Path) -> None:
        """The metrics of a step were written."""
        if self.leaks:
            LEAK.append((bytearray(1 << 20), open(os.devnull, "rb")))  # noqa: SIM115
            threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
        fault = self.by_step.get(step)
        mark = self.done / str(step)
        if fault is None or mark.exists():
            return
        mark.write_text(fault)
        getattr(self, fault.replace("-", "_"))(run)

    def kill(self, _: Path) -> None:
        """The process dies in the middle of the next save."""

        def die(*_: Any) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        fs.rename = die  # type: ignore[method-assign]

    def full_disk(self, _: Path) -> None:
        """Every write to a checkpoint fails."""
        write = Files.write

        def refuse(handle: Any, data: Any) -> None:
            if "checkpoints" in str(handle.name):
                raise OSError(errno.ENOSPC, "No space left on device")
            write(fs, handle, data)

        fs.write = refuse  # type: ignore[method-assign]

    def slow_disk(self, _: Path) -> None:
        """The next sync takes two seconds."""

        def slow(path: Path) -> None:
            del fs.fsync
            time.sleep(2.0)
            fs.fsync(path)

        fs.fsync = slow  # type: ignore[method-assign]

    def reward_hangs(self, _: Path) -> None:
        """The reward's process hangs in its next call."""
        (self.done / "hang").touch()

    def reward_raises(self, _: Path) -> None:
        """The reward raises in its next call."""
        (self.done / "raise").touch()

    def judge_answers_429(self, _: Path) -> None:
        """The judge refuses its next five requests."""
        (self.done / "refusals").write_text("5")

    def truncated_samples(self, run: Path) -> None:
        """The latest sample table loses its second half, then the process dies."""
        files = sorted((run / "samples").glob("step-*.parquet"))
        if files:
            os.truncate(files[-1], files[-1].stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    def torn_metrics(self, run: Path) -> None:
        """The last line of the metrics is torn, then the process dies."""
        file = run / "metrics.jsonl"
        os.truncate(file, file.stat().st_size - 7)
        os.kill(os.getpid(), signal.SIGKILL)


FAULTS = tuple(
    name.replace("_", "-") for name in vars(Faults) if not name.startswith("_") and name != "after"
)
NOT_FATAL = ("slow-disk", "judge-answers-429")
"""Faults that do not end the process."""


def reward(completions: list[str], plan: str) -> list[float]:
    """Share of different words; it hangs or raises once where the run's faults ask for it.

    It is given the plan and not the folder of marks: files that a reward's options name are part of its
    fingerprint, and the marks change.
    """
    folder = Path(json.loads(Path(plan).read_bytes())["done"])
    for name in ("hang", "raise"):
        mark = folder / name
        if mark.exists():
            mark.unlink()
            if name == "hang":
                time.sleep(3600)
            raise RuntimeError("no grader today")
    return [len(set(c.split())) / max(1, len(c.split())) for c in completions]


def main() -> None:
    """Train with the faults of the plan."""
    config, plan = sys.argv[1:]
    faults = Faults(json.loads(Path(plan).read_bytes()))
    log = Run.log

    def logged(self: Run, step: int, metrics: Any) -> None:
        log(self, step, metrics)
        faults.after(step, self.path)

    Run.log = logged  # type: ignore[method-assign]
    trimtab(["grpo", config])


if __name__ == "__main__":
    main()
