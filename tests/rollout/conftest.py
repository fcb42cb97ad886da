"""Servers that are killed at the end of a test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.engine_server import EngineServer
from tests.support.pools import Start
from trimtab.rollout.engines import pool as pool_module


@pytest.fixture
def quick_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "HEARTBEAT", 0.2)


@pytest.fixture
def start() -> Iterator[Start]:
    servers: list[EngineServer] = []

    def one(*args: Any, **over: Any) -> EngineServer:
        servers.append(EngineServer(*args, **over))
        return servers[-1]

    yield one
    for server in servers:
        server.running.set()
        server.kill()
