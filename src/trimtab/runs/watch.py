"""What a run in training shows to whoever watches it: its heartbeat, ``run.log``, and alerts."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.redact import redact
from trimtab.runs.alert import Alerts
from trimtab.runs.heartbeat import Heartbeat, Phase
from trimtab.runs.run_log import logged_to


class Watch:
    """The heartbeat, ``run.log`` and alerts of a run; without a folder, none of them."""

    def __init__(
        self,
        folder: Path | None = None,
        rank: int = 0,
        world: int = 1,
        on_finding: str = "",
        timeout: float = 30.0,
    ) -> None:
        """Begin to watch.

        Args:
            folder: The run folder.
            rank: Of this process; others than 0 have a heartbeat alone.
            world: Number of processes.
            on_finding: The command of ``Alerts``.
            timeout: Its deadline in seconds.
        """
        self.heartbeat = None if folder is None else Heartbeat(folder, rank, world)
        self._alerts: Alerts | None = None
        self._log = contextlib.ExitStack()
        self._ended = False
        if folder is not None and rank == 0:
            self._alerts = Alerts(on_finding, folder, timeout)
            self._log.enter_context(logged_to(folder))

    def begin(self, step: int, steps: int) -> None:
        """Training begins after ``step`` of ``steps`` steps."""
        if self.heartbeat is not None:
            self.heartbeat.begin(step, steps)

    def step(self, step: int, steps: int) -> None:
        """``step`` of ``steps`` steps are done."""
        if self.heartbeat is not None:
            self.heartbeat.step(step, steps)

    def phase(self, phase: Phase, error: str = "") -> None:
        """Another phase begins."""
        if self.heartbeat is not None:
            self.heartbeat.phase(phase, error)

    def alert(self, finding: Mapping[str, Any]) -> None:
        """Call ``on_finding``; returns at once."""
        if self._alerts is not None:
            self._alerts.send(finding)

    def end(self, error: BaseException | None = None) -> None:
        """The run has ended, by an error or without one; a failure is alerted. Later calls do nothing."""
        if self._ended:
            return
        self._ended = True
        if isinstance(error, Exception):
            reason = redact(f"{type(error).__name__}: {error}")[:2000]
            self.phase("failed", reason)
            self.alert(
                {
                    "source": "run",
                    "name": "run-failed",
                    "severity": "critical",
                    "title": "The run has failed",
                    "message": reason,
                    "step": self.heartbeat.step_done if self.heartbeat else 0,
                }
            )
        elif error is not None:  # SIGTERM, Ctrl-C
            self.phase("stopped")
        else:
            self.phase("finished")
        if self._alerts is not None:
            self._alerts.close()
        kind = None if error is None else type(error)
        with contextlib.suppress(
            Exception
        ):  # the traceback goes into run.log; the caller raises it
            self._log.__exit__(kind, error, None if error is None else error.__traceback__)
