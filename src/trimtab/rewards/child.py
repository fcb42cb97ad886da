"""A process that can be killed: work under a deadline, told and answered in JSON.

It is started by name, not forked and not by importing the caller's script again, so it holds
neither the caller's memory nor its threads, and a script needs no ``__main__`` guard.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from multiprocessing.connection import Connection
from typing import Any

from trimtab.errors import ConfigError

START_S = 120.0
"""Seconds to start and import: a library as large as torch takes many on a busy machine."""


class ChildTimeoutError(Exception):
    """The deadline passed; the process was killed."""


class ChildDiedError(Exception):
    """The process ended by itself, or its work raised."""


def _end(process: subprocess.Popen[bytes], connection: Connection) -> None:
    """Kill it with all it started, and reap it."""
    connection.close()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Child:
    """A process kept for many calls; killed at a deadline and started anew at the next call.

    Args:
        serve: "module:factory"; there ``factory(**given)`` returns what it has to say at the
            start, and a handler of calls. Both speak JSON.
        given: The factory's arguments.
        what: Whose it is, for messages.
        memory_gb: Address space it may take; None for no bound.
    """

    def __init__(
        self, serve: str, arguments: dict[str, Any], *, what: str, memory_gb: float | None = None
    ) -> None:
        self.first = {"serve": serve, "given": arguments, "memory_gb": memory_gb}
        self.what = what
        self.starts = 0
        """How often it was started."""
        self._connection: Connection | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize[..., Any] | None = None

    def start(self) -> Any:
        """Start it if it is not running; what its factory has to say.

        Raises:
            ConfigError: it cannot be started: the factory raised, or gave no sign in time.
        """
        self.close()
        parent_end, child_end = socket.socketpair()
        # The child finds what this process finds, also what was added to the path by hand.
        path = os.pathsep.join(p or os.getcwd() for p in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "trimtab.rewards.worker", str(child_end.fileno())],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            pass_fds=[child_end.fileno()],
            start_new_session=True,
        )
        child_end.close()
        self._connection = Connection(parent_end.detach())
        self._finalizer = weakref.finalize(self, _end, self._process, self._connection)
        self.starts += 1
        try:
            return self._ask(self.first, START_S)
        except (ChildTimeoutError, ChildDiedError) as error:
            self.close()
            raise ConfigError(f"{self.what}: its process could not start: {error}") from None

    def call(self, message: Any, timeout: float) -> Any:
        """The handler's answer to ``message``.

        Raises:
            ChildTimeoutError: ``timeout`` seconds passed; the process is dead.
            ChildDiedError: the process ended, or the handler raised.
        """
        if self._connection is None:
            self.start()
        return self._ask(message, timeout)

    def _ask(self, message: Any, timeout: float) -> Any:
        assert self._connection is not None and self._process is not None
        begun = time.monotonic()
        try:
            self._connection.send_bytes(json.dumps(message).encode())
            if not self._connection.poll(timeout):
                self.close()
                raise ChildTimeoutError(
                    f"no answer in {timeout:g} s (killed after {time.monotonic() - begun:.1f} s)"
                )
            answer = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)
            code = self._process.returncode
            self.close()
            raise ChildDiedError(f"the process ended with code {code}") from None
        if "error" in answer:
            raise ChildDiedError(answer["error"])
        return answer["answer"]

    def close(self) -> None:
        """Kill it if it runs."""
        if self._finalizer is not None:
            self._finalizer()
        self._connection = self._process = self._finalizer = None
