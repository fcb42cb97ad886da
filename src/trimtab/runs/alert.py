"""A command that is run for each finding, so that a run left alone can call someone.

Training never waits for it and never fails because of it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.redact import redact
from trimtab.runs.plain import to_json

log = logging.getLogger(__name__)
RUNNING = 8
"""Commands at once at most; a finding beyond them is logged and gets none."""
_LINES = 500
"""Characters of a failed command's output that are logged."""


class Alerts:
    """Runs the command of ``loop.on_finding`` in the background.

    The finding is JSON on standard input. In the environment are TRIMTAB_RUN, TRIMTAB_FINDING (its name),
    TRIMTAB_SEVERITY, TRIMTAB_STEP, TRIMTAB_TITLE and TRIMTAB_MESSAGE; text from a run is never part of
    the command line. No shell runs it: use ``sh -c '…'`` for a pipe.

    Args:
        command: Words as in a shell; empty runs nothing.
        run: The run folder.
        timeout: Seconds after which the command and its children are killed.
    """

    def __init__(self, command: str, run: Path, timeout: float) -> None:
        self.words = shlex.split(command)
        self.run, self.timeout = run, timeout
        self._threads: list[threading.Thread] = []

    def send(self, finding: Mapping[str, Any]) -> None:
        """Start the command for a finding; returns at once."""
        if not self.words:
            return
        self._threads = [t for t in self._threads if t.is_alive()]
        if len(self._threads) >= RUNNING:
            log.warning("on_finding: %d commands run already; %s got none", RUNNING, _name(finding))
            return
        thread = threading.Thread(target=self._call, args=(dict(finding),), daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no thread left
            log.warning("on_finding: the command was not started: %s", error)
            return
        self._threads.append(thread)

    def close(self) -> None:
        """Wait for commands that still run, ``timeout`` seconds in all at most."""
        deadline = time.monotonic() + self.timeout + 1.0
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _call(self, finding: dict[str, Any]) -> None:
        try:
            failure = self._run(finding)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong here, training goes on
            failure = f"{type(error).__name__}: {error}"
        if failure:
            log.warning("on_finding: the command failed for %s: %s", _name(finding), failure)

    def _run(self, finding: dict[str, Any]) -> str:
        """Run the command to its end; why it failed, empty if it did not."""
        finding = redact(finding)
        keys = {
            "FINDING": "name",
            "SEVERITY": "severity",
            "STEP": "step",
            "TITLE": "title",
            "MESSAGE": "message",
        }
        variables = {f"TRIMTAB_{k}": _text(finding.get(v)) for k, v in keys.items()}
        process = subprocess.Popen(
            self.words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **variables, "TRIMTAB_RUN": str(self.run.resolve())},
            start_new_session=True,
        )
        data = (to_json({**finding, "run": str(self.run)}) + "\n").encode("utf-8", "replace")
        try:
            output, _ = process.communicate(data, timeout=self.timeout)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"it did not end within {self.timeout:g} s and was killed"
        if process.returncode:
            text = output.decode("utf-8", "replace").strip()[-_LINES:]
            return f"exit status {process.returncode}: {text}"
        return ""


def _name(finding: Mapping[str, Any]) -> str:
    return str(finding.get("name") or finding.get("title") or "a finding")


def _text(value: Any) -> str:
    # The operating system takes no NUL, and no endless text.
    return "" if value is None else str(value).replace("\x00", " ")[:4000]
