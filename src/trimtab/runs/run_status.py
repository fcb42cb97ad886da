"""What a run does now, read from its folder: alive, stuck, finished, stopped or failed."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from trimtab.errors import DataError
from trimtab.runs.heartbeat import Beat, is_running, read_beats
from trimtab.runs.tail import last_row
from trimtab.types import Row

State = Literal["alive", "stuck", "finished", "stopped", "failed"]
PATIENCE = 10.0
"""A run is stuck once it is silent for this many times its longest step so far …"""
SHORTEST_SILENCE = 60.0
"""… and for this many seconds …"""
OTHER_PHASES = 1800.0
"""… while it starts, saves or exports, and before its first step ends, for this many."""


class RunStatus(BaseModel):
    """The state of a run; ``trimtab status --json`` prints a list of them."""

    run: str
    state: State
    reason: str
    """Why it is in this state, in a few words."""
    phase: str
    step: int
    """Steps done by every rank."""
    steps: int
    """Steps of the run; 0 if that is not known yet."""
    silent_seconds: float
    """Since the oldest heartbeat of a rank."""
    step_seconds: float
    eta_seconds: float | None
    """Until the last step, at the recent duration of a step; None unless the run is alive."""
    ranks: int
    metrics: Row
    """The last line of ``metrics.jsonl``."""
    finding: Row | None
    """The last line of ``findings.jsonl``."""


def status_of(folder: str | Path, stuck_after: float | None = None) -> RunStatus:
    """The state of the run in a folder.

    Args:
        folder: The run folder.
        stuck_after: Seconds of silence after which a run is stuck. Default: ten times its longest step so
            far, at least 60 s; 30 minutes while it starts, saves or exports.

    Raises:
        DataError: there is no such folder, or no training run in it.
    """
    path = Path(folder)
    if not path.is_dir():
        raise DataError(
            f"{path}: no such run folder; give the folder that a training command wrote"
        )
    beats = read_beats(path)
    metrics = last_row(path / "metrics.jsonl") or {}
    if not beats and not metrics:
        raise DataError(f"{path}: holds no heartbeat.json and no metrics.jsonl; give a run folder")
    now = time.time()
    state, reason = _state(path, beats, stuck_after, now)
    slowest = max((b.step_seconds for b in beats), default=0.0)
    step = min((b.step for b in beats), default=int(metrics.get("step") or 0))
    steps = max((b.steps for b in beats), default=0)
    is_training = state == "alive" and slowest > 0
    return RunStatus(
        run=str(folder),
        state=state,
        reason=reason,
        phase=beats[0].phase if beats else "",
        step=step,
        steps=steps,
        silent_seconds=round(max((now - b.time for b in beats), default=0.0), 1),
        step_seconds=slowest,
        eta_seconds=round((steps - step) * slowest, 1) if is_training else None,
        ranks=max((b.world for b in beats), default=1),
        metrics=metrics,
        finding=last_row(path / "findings.jsonl"),
    )


def _state(
    path: Path, beats: Sequence[Beat], stuck_after: float | None, now: float
) -> tuple[State, str]:
    if not beats:
        if (path / "summary.json").exists() and (path / "model").exists():
            return "finished", "it has a summary and a model"
        return "failed", "no process writes to it and it has no model"
    first = beats[0]
    for beat in beats:
        if beat.phase == "failed":
            return "failed", beat.error or "it ended with an error"
    if first.phase == "finished":
        return "finished", "all steps are done and the model is exported"
    stat = path.stat()
    if first.folder != (stat.st_dev, stat.st_ino):
        return "stopped", "this folder is a copy; no process writes to it"
    if len(beats) < first.world and now - first.time > _limit(first, stuck_after):
        return "stuck", f"{first.world - len(beats)} of {first.world} ranks have not started"
    for beat in beats:
        of_rank = f"rank {beat.rank}: " if first.world > 1 else ""
        silent = now - beat.time
        is_here = beat.host == socket.gethostname()
        if beat.phase == "stopped":
            return "stopped", "it got SIGTERM, saved and ended; run the same command to resume"
        if is_here and not is_running(beat):
            return "failed", f"{of_rank}process {beat.pid} has ended without a word; resume it"
        if silent > _limit(beat, stuck_after):
            where = "" if is_here else f" on {beat.host}"
            return "stuck", f"{of_rank}process {beat.pid}{where} is silent for {silent:.0f} s"
    return "alive", f"process {first.pid} on {first.host}"


def _limit(beat: Beat, stuck_after: float | None) -> float:
    """Seconds of silence after which a process is stuck."""
    if stuck_after is not None:
        return stuck_after
    if beat.phase != "training" or not beat.longest_step:
        return max(OTHER_PHASES, PATIENCE * beat.longest_step)
    return max(SHORTEST_SILENCE, PATIENCE * beat.longest_step)


def duration(seconds: float) -> str:
    """Seconds as text with two units.

    >>> duration(59), duration(3720), duration(200_000)
    ('59 s', '1 h 2 min', '2 d 7 h')
    """
    for unit, name, part, part_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if seconds >= unit:
            return f"{int(seconds // unit)} {name} {int(seconds % unit // part)} {part_name}"
    return (
        f"{int(seconds // 60)} min {int(seconds % 60)} s" if seconds >= 60 else f"{seconds:.0f} s"
    )


SHOWN = ("loss", "nll", "reward/mean", "objective/kl", "completion/length")


def to_text(status: RunStatus) -> str:
    """The state of a run on a few lines, for a terminal."""
    s = status
    total = f"/{s.steps}" if s.steps else ""
    head = f"{s.run}: {s.state}, step {s.step}{total}"
    if s.eta_seconds is not None:
        head += f", {duration(s.eta_seconds)} left at {s.step_seconds:.3g} s per step"
    lines = [head, f"  {s.reason}"]
    figures = [f"{k} {_figure(s.metrics[k])}" for k in SHOWN if k in s.metrics]
    if figures:
        lines.append(f"  metrics at step {s.metrics.get('step')}: {', '.join(figures)}")
    if s.finding:
        title = s.finding.get("title") or s.finding.get("name") or "finding"
        since = s.finding.get("step")
        lines.append(
            f"  last finding: {title}" + (f", since step {since}" if since is not None else "")
        )
    return "\n".join(lines)


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else "not finite"
