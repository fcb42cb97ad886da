"""The child process of ``trimtab.runs.child``: ``python -m trimtab.runs.worker FD``."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


def _leave_with(parent: int) -> None:
    """Kill this process and its children once the parent has ended, even if a call hangs."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.killpg(0, signal.SIGKILL)


def _begin(message: dict[str, Any]) -> tuple[Any, Callable[[Any], Any]]:
    if message["memory_gb"] is not None:
        limit = int(message["memory_gb"] * (1 << 30))
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    module, _, name = message["serve"].partition(":")
    return getattr(importlib.import_module(module), name)(**message["arguments"])


def _serve(connection: Connection) -> None:
    handle: Callable[[Any], Any] | None = None
    while True:
        message = json.loads(connection.recv_bytes())
        try:
            if handle is None:
                result, handle = _begin(message)
            else:
                result = handle(message)
            answer = json.dumps({"answer": result})
        except Exception as error:  # noqa: BLE001  the parent reports every error
            answer = json.dumps({"error": f"{type(error).__name__}: {error}"})
        connection.send_bytes(answer.encode())


def main() -> None:
    """Reply to messages until the connection closes: the first calls the factory, the others its handler."""
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    with contextlib.suppress(EOFError):
        _serve(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    main()
