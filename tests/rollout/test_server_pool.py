"""Servers as one engine: checks, sync, probe, failures. The servers are real, with our own sampler."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import folders
from tests.support.engine_server import EngineServer
from tests.support.labelling import free_port
from tests.support.models import tiny
from tests.support.processes import Forked
from tests.support.scorecard import scorecard_only
from trimtab.config import build
from trimtab.errors import ConfigError
from trimtab.models.load import LM
from trimtab.models.lora import LoraSpec
from trimtab.models.model_spec import ModelSpec
from trimtab.rollout.engine import EngineError, generate, update
from trimtab.rollout.engines import pool as pool_module
from trimtab.rollout.engines.pool import Member, ServerPool, choose
from trimtab.rollout.engines.server_process import assign_gpus
from trimtab.rollout.engines.vllm import Requirements, VLLMServer, stream_seed
from trimtab.rollout.policy_weights import PolicyWeights
from trimtab.rollout.sync import AdapterSync, FolderSync, Transport
from trimtab.sample.sampler import Request, Sampled, SamplingConfig
from trimtab.train.rl import main
from trimtab.train.rl_config import RLConfig

VOCAB = 26
SAMPLING = SamplingConfig(max_new_tokens=8)
PROMPTS = [np.array([1, 6 + i, 9]) for i in range(4)]
Start = Callable[..., EngineServer]


@pytest.fixture(autouse=True)
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


def folder(path: Path, tied: bool = True) -> Path:
    tiny("llama", tie_word_embeddings=tied, vocab_size=VOCAB).save_pretrained(path)
    folders.tokenizer().save_pretrained(path)
    return path


def policy(path: Path, lora: LoraSpec | None = None) -> LM:
    return LM.load(ModelSpec(path=str(path), lora=lora, device="cpu"))


def move(lm: LM, seed: int) -> None:
    """What an optimiser step does, only larger."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in lm.model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=draws), alpha=0.05)


def make(servers: list[EngineServer], transport: Transport, timeout: float = 60.0) -> ServerPool:
    clients = [VLLMServer(s.url, timeout=timeout) for s in servers]
    return ServerPool(clients, Requirements(VOCAB, 20), transport, (2,), PROMPTS)


def requests(count: int, n: int = 1) -> list[Request]:
    return [Request(PROMPTS[i % 4], (5, i), n) for i in range(count)]


def logp_gap(lm: LM, asked: list[Request], sampled: list[list[Sampled]]) -> float:
    """Largest difference of the engine's logprobs from the trainer's, nats."""
    pairs = [(r.prompt, s.ids) for r, group in zip(asked, sampled, strict=True) for s in group]
    trainer = PolicyWeights(lm, None).logps(pairs, 1.0)
    served = [s.logp for group in sampled for s in group]
    return float(np.abs(np.concatenate(trainer) - np.concatenate(served)).max())


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spans", [True, False])
def test_folder_sync_gives_every_server_the_weights(
    tmp_path: Path, start: Start, tied: bool, spans: bool
) -> None:
    path = folder(tmp_path / "model", tied)
    servers = [start(path, spans=spans) for _ in range(2)]
    lm = policy(path)
    engine = make(servers, FolderSync(tmp_path / "weights"))
    try:
        for version in (0, 3):
            move(lm, version)
            update(engine, version, PolicyWeights(lm, None))
            shown: list[tuple[int, ...]] = []
            asked = requests(12, 2)
            sampled = generate(
                engine, asked, SAMPLING, lambda *done, shown=shown: shown.append(done)
            )
            assert logp_gap(lm, asked, sampled) < 1e-4 and engine.gap < 1e-4
            assert all(s.versions == ((0, len(s.ids), version),) for g in sampled for s in g)
            assert shown[-1] == (24, 24)
        assert all(len(s.seeds) > 0 for s in servers), "both have served"
        assert engine.versioned is spans
    finally:
        engine.close()
    assert not list((tmp_path / "weights").iterdir()), "files are deleted"


@pytest.mark.slow
def test_a_stale_head_stops_the_run(tmp_path: Path, start: Start) -> None:
    path = folder(tmp_path / "model")
    servers = [start(path), start(path, stale_head=True)]
    lm = policy(path)
    engine = make(servers, FolderSync(tmp_path / "weights"))
    try:
        update(engine, 0, PolicyWeights(lm, None))  # the head is still the same
        move(lm, 1)
        message = f"{servers[1].url}: after the update to version 1 its logprobs differ"
        with pytest.raises(EngineError, match=message):
            update(engine, 1, PolicyWeights(lm, None))
    finally:
        engine.close()


@pytest.mark.slow
def test_adapters_have_names_of_their_own_and_are_unloaded(tmp_path: Path, start: Start) -> None:
    path = folder(tmp_path / "model")
    server, lm = start(path), policy(path, LoraSpec(r=2))
    transport = AdapterSync(tmp_path / "adapters")
    engine = make([server], transport)
    try:
        names: list[str] = []
        for version in (0, 1, 1, 2):  # version 1 comes twice, as after a rollback
            move(lm, len(names))
            update(engine, version, PolicyWeights(lm, folders.tokenizer()))
            names.append(transport.names[-1])
            sampled = generate(engine, requests(4), SAMPLING)
            assert logp_gap(lm, requests(4), sampled) < 1e-4
            assert sampled[0][0].versions == ((0, len(sampled[0][0].ids), version),)
        assert len(set(names)) == 4
        assert list(server.adapters) == names[1:], "two older ones are there, the first is gone"
        assert "/pause" not in server.calls
    finally:
        engine.close()
    assert not server.adapters


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
            threading.Timer(0.3, servers[0].kill).start()
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
            time.sleep(0.3)
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


@pytest.mark.parametrize(
    ("over", "needs", "message"),
    [
        ({"version": "0.31.2"}, (VOCAB, 20), r"runs vLLM 0\.31\.2; 0\.32 or newer"),
        ({"version": "nginx"}, (VOCAB, 20), "is no vLLM server"),
        ({"max_length": 16}, (VOCAB, 20), "restart it with --max-model-len 20"),
        ({}, (VOCAB + 1, 20), "refuses token id 26 of the policy"),
        ({}, (VOCAB - 1, 20), "serves a model with more than the policy's 25 token ids"),
        ({"raw": True}, (VOCAB, 20), "restart it with --logprobs-mode processed_logprobs"),
    ],
)
def test_a_server_that_does_not_fit_is_refused(
    tmp_path: Path, start: Start, over: dict[str, Any], needs: tuple[int, int], message: str
) -> None:
    server = start(folder(tmp_path / "model"), **over)
    with pytest.raises(ConfigError, match=message):
        ServerPool(
            [VLLMServer(server.url)], Requirements(*needs), FolderSync(tmp_path), (2,), PROMPTS
        )


def test_an_unknown_server_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no vLLM server at http://127\.0\.0\.1:9 "):
        ServerPool(
            [VLLMServer("http://127.0.0.1:9")], Requirements(VOCAB, 20), FolderSync(tmp_path), (2,),
            PROMPTS,
        )  # fmt: skip


def test_more_servers_than_gpus_are_refused() -> None:
    assert assign_gpus(2, 2, 8, 4) == [[4, 5], [6, 7]]
    assert assign_gpus(2, 1, 0, 0) == [[], []]
    with pytest.raises(ConfigError, match="3 servers of 2 GPUs and 4 for training are 10 GPUs"):
        assign_gpus(3, 2, 8, 4)


def test_requests_are_spread_by_their_key() -> None:
    members: list[Any] = [object(), object(), object()]
    chosen = [members.index(choose((0, i), members)) for i in range(600)]
    assert chosen == [members.index(choose((0, i), members)) for i in range(600)]
    assert min(np.bincount(chosen, minlength=3)) > 150
    seeds = {stream_seed((3, i), j) for i in range(50) for j in range(4)}
    assert len(seeds) == 200 and all(0 <= s < 2**63 for s in seeds)


def test_engines_are_awaited_from_any_loop(tmp_path: Path, start: Start) -> None:
    path = folder(tmp_path / "model")
    lm = policy(path)
    engine = make([start(path)], FolderSync(tmp_path / "weights"))

    async def some() -> list[Sampled]:
        return await engine.generate(requests(1)[0], SAMPLING)

    try:
        update(engine, 0, PolicyWeights(lm, None))
        first, second = asyncio.run(some()), asyncio.run(some())
        assert first[0].ids.tolist() == second[0].ids.tolist()
        health = asyncio.run(engine.health())
        assert health.alive and health.version == 0 and health.running == 0
        assert isinstance(engine.members[0], Member)
    finally:
        engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_grpo_trains_through_servers(tmp_path: Path, start: Start, lora: bool) -> None:
    path = folder(tmp_path / "model")
    servers = [start(path) for _ in range(2)]
    rows: Any = [{"prompt": f"who {w} ?"} for w in folders.WORDS[:6]]
    folders.write(tmp_path / "prompts.jsonl", rows)
    config = build(
        RLConfig,
        {
            "out": str(tmp_path / "run"), "model": {"path": str(path), **({"lora": {"r": 2}} if lora else {})},
            "data": str(tmp_path / "prompts.jsonl"), "method": "grpo", "rewards": [folders.WORDY],
            "steps": 2, "batch_size": 3, "sampling": {"max_new_tokens": 6}, "optim": {"lr": 1e-3},
            "rollout": {"engine": "vllm", "urls": [s.url for s in servers]},
        },
    )  # fmt: skip
    metrics = main(config)
    # The trainer's logprobs are the servers': each importance weight is 1.
    assert metrics["sampler/ess"] == pytest.approx(1.0, abs=1e-4)
    assert abs(metrics["sampler/kl"]) < 1e-6
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
