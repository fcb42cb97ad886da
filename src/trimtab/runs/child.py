"""A child process that is killed at a deadline; requests and replies are JSON.

It runs ``python -m trimtab.runs.worker``. It is not forked and does not import the caller's script,
so it shares neither memory nor threads with the caller, and a script needs no ``__main__`` guard.
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
"""Seconds to start and import: importing a library as large as torch is slow on a busy machine."""


class ChildTimeoutError(Exception):
    """The deadline passed; the process was killed."""


class ChildDiedError(Exception):
    """The process ended by itself, or its function raised an exception."""


def _end(process: subprocess.Popen[bytes], connection: Connection) -> None:
    """Kill the process and all its children, and reap it."""
    connection.close()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Child:
    """A process for many calls. It is killed at a deadline and restarted by the next call.

    Args:
        serve: "module:factory". ``factory(**arguments)`` returns a value for ``start`` and a function
            that handles a call. Both values and calls must be JSON.
        memory_gb: Limit of the address space in GiB; None for no limit.
    """

    def __init__(
        self, serve: str, arguments: dict[str, Any], *, what: str, memory_gb: float | None = None
    ) -> None:
        self.first = {"serve": serve, "arguments": arguments, "memory_gb": memory_gb}
        self.what = what
        self.starts = 0
        """Number of starts."""
        self._connection: Connection | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize[..., Any] | None = None

    def start(self) -> Any:
        """Start the process, after killing one that runs, and return the factory's first value.

        Raises:
            ConfigError: the process did not start: the factory raised an exception, or the start
                took longer than ``START_S``.
        """
        self.close()
        parent_end, child_end = socket.socketpair()
        # The child gets this process's import path, including entries added at run time.
        path = os.pathsep.join(p or os.getcwd() for p in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "trimtab.runs.worker", str(child_end.fileno())],
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
        """The handler's reply to ``message``; the process is started first if it does not run.

        Raises:
            ChildTimeoutError: there was no reply in ``timeout`` seconds; the process was killed.
            ChildDiedError: the process ended, or the handler raised an exception.
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
                    f"no reply in {timeout:g} s (killed after {time.monotonic() - begun:.1f} s)"
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
        """Kill the process if it runs."""
        if self._finalizer is not None:
            self._finalizer()
        self._connection = self._process = self._finalizer = None
