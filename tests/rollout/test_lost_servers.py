"""Servers that are killed, hang or come back, and what becomes of the prompts that they had."""

from __future__ import annotations

import signal
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.labelling import free_port
from tests.support.pools import (
    PROMPTS,
    SAMPLING,
    VOCAB,
    Start,
    folder,
    logp_gap,
    make,
    move,
    policy,
    requests,
)
from tests.support.processes import Forked
from tests.support.scorecard import scorecard_only
from trimtab.rollout.engine import EngineError, generate, update
from trimtab.rollout.engines import pool as pool_module
from trimtab.rollout.engines.member import Member
from trimtab.rollout.engines.pool import ServerPool
from trimtab.rollout.engines.vllm import Requirements, VLLMServer
from trimtab.rollout.policy_weights import PolicyWeights
from trimtab.rollout.sync import FolderSync

pytestmark = pytest.mark.usefixtures("quick_heartbeat")


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["idle", "serving"])
def test_a_killed_server_loses_and_doubles_no_prompt(
    tmp_path: Path, start: Start, killed: str
) -> None:
    path = folder(tmp_path / "model")
    lm = policy(path)
    servers = [start(path, seconds=0.05) for _ in range(2)]
    engine = make(servers, FolderSync(tmp_path / "weights"))
    try:
        update(engine, 0, PolicyWeights(lm, None))
        calm = generate(engine, requests(24), SAMPLING)
        if killed == "idle":
            servers[0].kill()
        else:
            servers[0].dies_after = len(servers[0].seeds) + 3
        started = time.monotonic()
        sampled = generate(engine, requests(24), SAMPLING)
        assert time.monotonic() - started < 30, "and it takes no heartbeat's time"
        assert [s.ids.tolist() for (s,) in sampled] == [s.ids.tolist() for (s,) in calm]
        assert [m.state for m in engine.members] == ["dead", "serving"]
        # The next update goes on with the survivor.
        move(lm, 1)
        update(engine, 1, PolicyWeights(lm, None))
        assert logp_gap(lm, requests(4), generate(engine, requests(4), SAMPLING)) < 1e-4
    finally:
        engine.close()


class ServerProcess:
    """A server in a process of its own, which can be stopped by a signal."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        script = str(Path(__file__).parents[1] / "support" / "engine_server.py")
        self.process = Forked(script, str(path), str(port), str(seconds), script=True)
        limit = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=1).close()
                return
            except OSError:
                assert self.process.poll() is None and time.monotonic() < limit, (
                    self.process.output()
                )
                time.sleep(0.02)


def seconds_until_dead(path: Path, folder: Path, timeout: float) -> float:
    """Stop one of two servers by SIGSTOP while both serve; how long until it counts as dead."""
    lm = policy(path)
    servers = [ServerProcess(path, 0.05) for _ in range(2)]
    clients = [VLLMServer(s.url, timeout=timeout) for s in servers]
    engine = ServerPool(clients, Requirements(VOCAB, 20), FolderSync(folder), (2,), PROMPTS)
    try:
        update(engine, 0, PolicyWeights(lm, None))
        calm = generate(engine, requests(24), SAMPLING)
        seconds: list[float] = []

        def stop() -> None:
            while not engine.members[0].calls:
                time.sleep(0.001)
            servers[0].process.send_signal(signal.SIGSTOP)
            started = time.monotonic()
            while engine.members[0].state != "dead" and time.monotonic() < started + 60:
                time.sleep(0.005)
            seconds.append(time.monotonic() - started)

        watcher = threading.Thread(target=stop)
        watcher.start()
        sampled = generate(engine, requests(24), SAMPLING)
        watcher.join()
        assert [s.ids.tolist() for (s,) in sampled] == [s.ids.tolist() for (s,) in calm]
        assert [m.state for m in engine.members] == ["dead", "serving"]
        return seconds[0]
    finally:
        for server in servers:
            server.process.kill()
            server.process.wait()
        engine.close()


@pytest.mark.slow
def test_a_server_that_hangs_is_dead_after_three_heartbeats(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    """RELIABILITY 8. A request may take ten minutes; its server is given up long before."""
    monkeypatch.setattr(pool_module, "HEARTBEAT", 0.5)
    monkeypatch.setattr(pool_module, "PATIENCE", 0.5)
    path = folder(tmp_path / "model")
    seconds = seconds_until_dead(path, tmp_path / "weights", 600.0)
    heartbeats = seconds / (pool_module.HEARTBEAT + pool_module.PATIENCE)
    record_property("heartbeats", heartbeats)
    assert heartbeats <= pool_module.MISSES + 0.5  # it is stopped between two


@scorecard_only
@pytest.mark.slow
def test_a_server_that_is_waited_for_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check can fail: without the heartbeat the requests last until their own limit."""
    monkeypatch.setattr(pool_module, "HEARTBEAT", 3600.0)
    monkeypatch.setattr(pool_module, "PATIENCE", 0.5)
    path = folder(tmp_path / "model")
    assert seconds_until_dead(path, tmp_path / "weights", 8.0) > 7.0


@pytest.mark.slow
def test_a_prompt_that_is_not_asked_again_is_noticed(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check of killed servers can fail: without the second try a prompt is lost."""
    once = ServerPool._pick

    async def pick(self: ServerPool, key: tuple[int, ...], avoid: Member | None) -> Member:
        if avoid is not None:
            raise EngineError("asked once only")
        return await once(self, key, avoid)

    monkeypatch.setattr(ServerPool, "_pick", pick)
    with pytest.raises(EngineError, match="asked once only"):
        test_a_killed_server_loses_and_doubles_no_prompt(tmp_path, start, "serving")


@pytest.mark.slow
def test_a_restarted_server_is_synced_before_it_serves(tmp_path: Path, start: Start) -> None:
    path = folder(tmp_path / "model")
    lm = policy(path)
    servers = [start(path) for _ in range(2)]
    engine = make(servers, FolderSync(tmp_path / "weights"))
    try:
        move(lm, 1)
        update(engine, 4, PolicyWeights(lm, None))
        servers[0].kill()
        again = start(path, port=servers[0].port)
        assert again.label == "default"
        limit = time.monotonic() + 60
        while again.label != "4" or engine.members[0].state != "serving":
            sampled = generate(engine, requests(6), SAMPLING)
            assert all(s.versions[0][2] == 4 for (s,) in sampled), "never the start's weights"
            assert time.monotonic() < limit
        sampled = generate(engine, requests(12), SAMPLING)
        assert logp_gap(lm, requests(12), sampled) < 1e-4
        assert again.seeds, "it serves again"
    finally:
        engine.close()


def test_no_server_left_is_an_error(tmp_path: Path, start: Start) -> None:
    path = folder(tmp_path / "model")
    server, lm = start(path), policy(path)
    engine = make([server], FolderSync(tmp_path / "weights"))
    try:
        update(engine, 0, PolicyWeights(lm, None))
        engine.timeout = 2.0
        server.kill()
        with pytest.raises(EngineError, match=f"no server can serve .* {server.url} is dead"):
            generate(engine, requests(1), SAMPLING)
        with pytest.raises(EngineError, match="no server is left"):
            update(engine, 1, PolicyWeights(lm, None))
    finally:
        engine.close()
