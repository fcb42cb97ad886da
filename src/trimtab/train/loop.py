"""The training loop: step, record, save, resume."""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from trimtab.doctor.diagnosis import examine_live
from trimtab.models import checkpoint
from trimtab.runs import Run, read_metrics
from trimtab.runs.console import bar, console
from trimtab.train.trainer import LoopSpec, Trainer


class Stage(Protocol):
    """What the loop asks of a method."""

    name: str
    trainer: Trainer
    steps: int
    """A stage that lowers it while training ends there."""

    def step(self, index: int) -> dict[str, float]:
        """Train on step ``index``; metrics by name."""
        ...

    def evaluate(self, index: int) -> dict[str, float]:
        """Held-out figures."""
        ...

    def samples(self) -> list[dict[str, Any]]:
        """Rows of what the last step produced, for ``samples/``."""
        ...

    def state(self) -> dict[str, Any]:
        """What resume needs beyond the trainer's own, as JSON."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Undo ``state``."""
        ...

    def export(self, folder: Path) -> None:
        """Write the model in HF format."""
        ...

    def line(self, metrics: dict[str, float]) -> str:
        """A few words for the progress bar."""
        ...


@dataclass(slots=True)
class _Stop:
    """Set by SIGTERM; read between steps."""

    asked: bool = False
    old: Any = field(default=None)

    def __enter__(self) -> _Stop:
        def ask(signum: int, frame: FrameType | None) -> None:
            self.asked = True

        try:
            self.old = signal.signal(signal.SIGTERM, ask)
        except ValueError:  # not the main thread: the caller handles signals
            self.old = None
        return self

    def __exit__(self, *_: object) -> None:
        if self.old is not None:
            signal.signal(signal.SIGTERM, self.old)


def fit(stage: Stage, run: Run, loop: LoopSpec) -> dict[str, float]:
    """Train ``stage`` to its end in the folder ``run``, going on from its latest checkpoint.

    On SIGTERM the step in hand is finished, a checkpoint is written, and the process exits 143.

    Returns:
        The last metrics and evaluation, also in ``summary.json``.
    """
    folder = run.path / "checkpoints"
    first = 0
    saved = checkpoint.latest(folder)
    if saved is not None:
        stage.trainer.load(saved)
        stage.load(saved.state["stage"])
        first = saved.step
        console.print(f"[dim]{stage.name}: going on from step {first}[/dim]")
    run.rewind(first)

    def save(done: int) -> None:
        tensors = stage.trainer.tensors()
        state = {"trainer": stage.trainer.state(), "stage": stage.state()}
        checkpoint.save(folder, done, tensors, state, keep=loop.save_total_limit)

    metrics: dict[str, float] = {}
    started = time.monotonic()
    with _Stop() as stop, bar(stage.name, stage.steps, first) as show:
        for index in range(first, stage.steps):
            before = time.monotonic()
            metrics = stage.step(index)
            done = index + 1
            metrics["time/step"] = time.monotonic() - before
            last = done == stage.steps
            if last or (loop.eval_steps and done % loop.eval_steps == 0):
                metrics.update(stage.evaluate(done))
            run.log(done, metrics)
            if loop.sample_steps and (last or done % loop.sample_steps == 0):
                run.samples(done, stage.samples())
            if loop.doctor_steps and (last or done % loop.doctor_steps == 0):
                examine_live(run.path, stage.steps)
            show(done, note=stage.line(metrics))
            if last or stop.asked or (loop.save_steps and done % loop.save_steps == 0):
                save(done)
            if stop.asked and not last:
                console.print(
                    f"{stage.name}: stopped at step {done}; the same command goes on from here"
                )
                sys.exit(143)
            if last:
                break
    if first >= stage.steps:
        # Trained before, and perhaps killed before the export: its last record says how it ended.
        rows = [r for r in read_metrics(run.path) if r["step"] == first]
        metrics = {k: v for r in rows for k, v in r.items() if k not in ("step", "time")}
        metrics = metrics or stage.evaluate(first)
    stage.export(run.path / "model")
    metrics["seconds"] = time.monotonic() - started
    run.summary({k.replace("/", "."): v for k, v in metrics.items()})
    return metrics
