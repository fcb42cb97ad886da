"""The training loop: step, record, save, resume."""

from __future__ import annotations

import logging
import math
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar

from trimtab import ranks, runs
from trimtab.doctor.diagnosis import examine_live
from trimtab.errors import ConfigError
from trimtab.models import checkpoint
from trimtab.runs import Run, to_json, write_atomic
from trimtab.runs.console import bar
from trimtab.runs.tail import last_row
from trimtab.runs.watch import Watch
from trimtab.train.stage import Metrics, Stage, StageConfig
from trimtab.train.trainer import LoopSpec, NonFiniteError

log = logging.getLogger(__name__)
C = TypeVar("C", bound=StageConfig)


@dataclass(slots=True)
class _StopSignal:
    """Notes a SIGTERM, so that the loop can stop between two steps."""

    received: bool = False
    previous: Any = None

    def __enter__(self) -> _StopSignal:
        def receive(signum: int, frame: FrameType | None) -> None:
            self.received = True

        try:
            self.previous = signal.signal(signal.SIGTERM, receive)
        except ValueError:  # not the main thread: the caller handles signals
            self.previous = None
        return self

    def __exit__(self, *_: object) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGTERM, self.previous)


def open_run(config: StageConfig) -> Run:
    """The run folder of a stage, as ``trimtab.runs.open_run``; rank 0 alone writes its records.

    Until the run ends, every rank has a heartbeat, and messages also go to ``run.log``.
    """
    opened: list[Run] = []
    here, loop = ranks.current(), config.loop
    here.on_main(lambda: opened.append(runs.open_run(config, config.out, loop.report_to)))
    run = opened[0] if here.is_main else runs.SilentRun(config.out)
    run.watch = Watch(run.path, here.rank, here.world, loop.on_finding, loop.on_finding_timeout)
    return run


def run_stage(make: Callable[[C], Stage[Any, Any]], config: C) -> Metrics:
    """Open the run folder, build the stage of ``config`` and train it."""
    with open_run(config) as run:
        return train(make(config), run)


def train(stage: Stage[Any, Any], run: Run) -> Metrics:
    """Train ``stage`` in its run folder, and log the result.

    Returns:
        The last metrics and evaluation, also in ``summary.json``.
    """
    try:
        metrics = fit(stage, run, stage.config.loop)
    except BaseException as error:
        run.watch.end(error)
        raise
    finally:
        stage.close()
    log.info("%s: %s -> %s", stage.title, stage.summary(metrics), run.path / "model")
    run.watch.end()
    return metrics


SAMPLE_TABLES = 40
"""Tables of logged samples in a run that does not set ``loop.sample_steps``."""


def sample_interval(loop: LoopSpec, steps: int) -> int:
    """Steps between logged samples of a run of ``steps`` steps; 0 logs none."""
    return math.ceil(steps / SAMPLE_TABLES) if loop.sample_steps is None else loop.sample_steps


def fit(stage: Stage[Any, Any], run: Run, loop: LoopSpec) -> Metrics:
    """Train ``stage`` to its end, resuming from the latest checkpoint of the run folder.

    On SIGTERM the current step is finished, a checkpoint is written, and the process exits with 143.

    Returns:
        The last metrics and evaluation, also in ``summary.json``.
    """
    here = ranks.current()
    watch = run.watch
    stage.record_facts(run)
    first = _resume(stage, run)
    metrics: Metrics = {}
    started = time.monotonic()
    sample_steps = sample_interval(loop, stage.steps)
    watch.begin(first, stage.steps)
    with _StopSignal() as stop, bar(stage.name, stage.steps, first, hide=not here.is_main) as show:
        for index in range(first, stage.steps):
            step_started = time.monotonic()
            try:
                metrics = stage.step(index)
            except NonFiniteError as error:
                if here.is_main:
                    _dump(run, index + 1, error)
                raise
            done = index + 1
            metrics["time/step"] = time.monotonic() - step_started
            # A stage may lower ``steps`` during its step: it then ends here.
            last = done == stage.steps

            def due(interval: int, done: int = done, last: bool = last) -> bool:
                return interval > 0 and (last or done % interval == 0)

            if last or due(loop.eval_steps):
                metrics.update(stage.evaluate(done))
            rows = stage.samples(metrics) if due(sample_steps) else []
            run.log(done, metrics)
            if rows:
                run.samples(done, rows)
            if here.is_main and due(loop.doctor_steps):
                for finding in examine_live(run.path, stage.steps):
                    watch.alert(finding.model_dump(mode="json"))
            show(done, note=stage.progress(metrics))
            stopped = here.agree(stop.received)
            if last or stopped or due(loop.save_steps):
                watch.phase("saving")
                _save(stage, run, done, loop.save_total_limit)
            if stopped and not last:
                log.warning(
                    "%s: stopped at step %d; run the same command to resume", stage.name, done
                )
                sys.exit(143)
            watch.step(done, stage.steps)
            if last:
                break
    if first >= stage.steps:
        # Training ended before, perhaps without the export: the last record has its metrics.
        row = here.on_main(lambda: last_row(run.path / "metrics.jsonl")) or {}
        if row.get("step") == first:
            metrics = {k: v for k, v in row.items() if k not in ("step", "time")}
        metrics = metrics or stage.evaluate(first)
    watch.phase("exporting")
    stage.export(run.path / "model")
    metrics["seconds"] = time.monotonic() - started
    run.summary({k.replace("/", "."): v for k, v in metrics.items()})
    return metrics


def _dump(run: Run, step: int, error: NonFiniteError) -> None:
    """Write the batch whose loss was not finite, so that it can be looked at."""
    rows = [
        {"prompt_id": g.id, "index": i, "prompt": g.text, "completion": c.text, "reward": c.reward}
        | {"ids": c.ids.tolist()}
        for g in error.groups
        for i, c in enumerate(g.completions)
    ]
    file = run.path / f"not-finite-{step:08d}.jsonl"
    try:
        write_atomic(file, "".join(to_json(row) + "\n" for row in rows).encode("utf-8", "replace"))
    except OSError as refused:
        log.warning("%s: the batch could not be written (%s)", file, refused)
    else:
        log.warning("%s: the batch of step %d, whose loss is not finite", file, step)


def _resume(stage: Stage[Any, Any], run: Run) -> int:
    """Restore the latest checkpoint; the number of steps that are done."""
    first = 0
    saved = checkpoint.latest_of_main(run.checkpoints)
    if saved is not None:
        stage.trainer.load(saved)
        stage.load(saved.state["stage"])
        first = saved.step
        if first > stage.steps:
            raise ConfigError(
                f"{run.path} holds {first} steps, and this run has only {stage.steps}: a run can be "
                "made longer, not shorter; choose another --out, or add --fresh to start again"
            )
        log.info("%s: resuming from step %d", stage.name, first)
    run.rewind(first)
    return first


def _save(stage: Stage[Any, Any], run: Run, done: int, keep: int) -> None:
    """Write a checkpoint after ``done`` steps."""
    tensors = stage.trainer.tensors()
    state = {"trainer": stage.trainer.state(), "stage": stage.state()}
    checkpoint.save(run.checkpoints, done, tensors, state, keep=keep)
