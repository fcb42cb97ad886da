"""A small file that each process of a run replaces as it trains: ``trimtab status`` reads it.

It says that a process lives and how far it is. It is never an input of training, so it is written without
a sync, and a disk that refuses it stops nothing.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

log = logging.getLogger(__name__)
INTERVAL = 0.5
"""Seconds between two beats at least, so that a run of very short steps is not slower."""
AVERAGED = 20
"""Steps over which the duration of a step is averaged, about."""

Phase = Literal["starting", "training", "saving", "exporting", "finished", "stopped", "failed"]


class Beat(BaseModel):
    """The content of ``heartbeat.json``, or ``heartbeat-RANK.json`` of another rank."""

    phase: Phase
    step: int
    """Steps done."""
    steps: int
    """Steps of the run; 0 before that is known."""
    time: float
    """When it was written, seconds since 1970."""
    step_seconds: float = 0.0
    """Recent mean duration of a step, evaluations and checkpoints included; 0 before the first."""
    longest_step: float = 0.0
    """The longest duration of a step so far, seconds."""
    rank: int = 0
    world: int = 1
    """Number of processes."""
    pid: int
    started: str
    """When the process started, as the operating system counts it; empty where it does not tell."""
    host: str
    folder: tuple[int, int]
    """Device and inode of the run folder: a copy of it has another."""
    error: str = ""
    """Why the run failed."""


class Heartbeat:
    """Writes the heartbeat of this process.

    Args:
        folder: The run folder.
        rank: Of this process.
        world: Number of processes.
    """

    def __init__(self, folder: Path, rank: int = 0, world: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        stat = folder.stat()
        self.path = folder / file_name(rank)
        self._beat = Beat(
            phase="starting",
            step=0,
            steps=0,
            time=0.0,
            rank=rank,
            world=world,
            pid=os.getpid(),
            started=process_start(os.getpid()),
            host=socket.gethostname(),
            folder=(stat.st_dev, stat.st_ino),
        )
        self._written = self._stepped = -INTERVAL
        self._refused = False
        self.phase("starting")

    @property
    def step_done(self) -> int:
        """Steps done."""
        return self._beat.step

    def begin(self, step: int, steps: int) -> None:
        """The first step begins, after ``step`` that are done of ``steps``."""
        self._stepped = time.monotonic()
        self._beat = self._beat.model_copy(update={"step": step, "steps": steps})
        self.phase("training")

    def step(self, step: int, steps: int) -> None:
        """``step`` steps of ``steps`` are done; written unless the last beat is very young."""
        now = time.monotonic()
        seconds, self._stepped = now - self._stepped, now
        beat = self._beat
        mean = beat.step_seconds
        mean = mean + (seconds - mean) / AVERAGED if mean else seconds
        changes = {
            "phase": "training",
            "step": step,
            "steps": steps,
            "step_seconds": mean,
            "longest_step": max(beat.longest_step, seconds),
        }
        self._beat = beat.model_copy(update=changes)
        if now - self._written >= INTERVAL:
            self._write(now)

    def phase(self, phase: Phase, error: str = "") -> None:
        """Another phase begins; written at once."""
        self._beat = self._beat.model_copy(update={"phase": phase, "error": error})
        self._write(time.monotonic())

    def _write(self, now: float) -> None:
        self._written = now
        text = self._beat.model_copy(update={"time": round(time.time(), 3)}).model_dump_json()
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        try:
            temporary.write_bytes(text.encode("utf-8", "replace"))
            temporary.replace(self.path)
        except OSError as error:
            if not self._refused:
                log.warning("%s: the heartbeat cannot be written (%s)", self.path, error)
            self._refused = True


def file_name(rank: int) -> str:
    """The file of a rank's heartbeat."""
    return f"heartbeat-{rank}.json" if rank else "heartbeat.json"


def read_beats(folder: Path) -> list[Beat]:
    """The heartbeats of the ranks of the latest start, by rank; damaged ones are left out."""
    beats: list[Beat] = []
    for file in folder.glob("heartbeat*.json"):
        try:
            beats.append(Beat.model_validate_json(file.read_bytes()))
        except (OSError, ValidationError):
            continue
    first = next((b for b in beats if b.rank == 0), None)
    # A run that is resumed with fewer processes leaves files of the others behind.
    return sorted((b for b in beats if first and b.rank < first.world), key=lambda b: b.rank)


def process_start(pid: int) -> str:
    """When a process started, in clock ticks since the boot; empty if it has ended, or without /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    # The name in parentheses may hold spaces. After it: 0 is the state, 19 the start.
    state, *rest = fields.rpartition(")")[2].split()
    return "" if state in "ZX" else rest[18]


def is_running(beat: Beat) -> bool:
    """Whether the process of a heartbeat runs on this machine."""
    if beat.host != socket.gethostname():
        return False
    if beat.started:
        return process_start(beat.pid) == beat.started
    try:
        os.kill(beat.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
