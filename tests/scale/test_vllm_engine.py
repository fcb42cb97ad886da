"""Real vLLM servers as rollout engines: weight updates, failures, versions of tokens.

Each test drives the client, pool and transports of a run; only the models are tiny.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from tests.support import folders
from tests.support.pools import move
from tests.support.vllm_servers import (
    ARGUMENTS,
    MISSING,
    PYTHON,
    VOCAB,
    model_folder,
    start_servers,
)
from trimtab.config import build
from trimtab.launch.commands import find_command
from trimtab.models.load import LM
from trimtab.models.lora import LoraSpec
from trimtab.models.model_spec import ModelSpec
from trimtab.rollout import link as link_module
from trimtab.rollout import sync as sync_module
from trimtab.rollout.engine import EngineError, generate, update
from trimtab.rollout.engines.pool import ServerPool
from trimtab.rollout.engines.server_process import ServerProcesses
from trimtab.rollout.engines.vllm import Requirements, VLLMServer
from trimtab.rollout.link import GroupSync
from trimtab.rollout.policy_weights import PolicyWeights
from trimtab.rollout.sync import AdapterSync, FolderSync, Transport
from trimtab.runs import read_metrics
from trimtab.sample.sampler import Request, Sampled, SamplingConfig
from trimtab.train.rl import main
from trimtab.train.rl_config import RLConfig
from trimtab.types import Ints

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.is_file(), reason=MISSING),
    pytest.mark.timeout(3600),
]
PROMPTS = [np.array([1, 6 + i, 9]) for i in range(4)]
SAMPLING = SamplingConfig(max_new_tokens=20)
LIMIT = 1e-4
"""Nats per token between a server's logprobs and the trainer's."""


class TinyServers:
    """Two servers of one model that take broadcasts; started when first asked for."""

    def __init__(self, folder: Path, tied: bool) -> None:
        self.tied, self.folder = tied, folder
        self.model = model_folder(folder / "model", tied)
        self.started: dict[str, ServerProcesses] = {}

    def servers(self, kind: str) -> ServerProcesses:
        if kind not in self.started:
            gloo = kind == "gloo"
            self.started[kind] = start_servers(
                self.model, self.folder / kind, 2 if gloo and self.tied else 1,
                "gloo" if gloo else None, None if gloo else 8,
            )  # fmt: skip
        return self.started[kind]

    def policy(self, lora: bool = False) -> LM:
        spec = ModelSpec(path=str(self.model), lora=LoraSpec(r=4) if lora else None, device="cpu")
        return LM.load(spec)

    def pool(self, kind: str, transport: Transport) -> ServerPool:
        servers = self.servers(kind)
        clients = [VLLMServer(p.url, servers.key, 300.0) for p in servers.processes]
        return ServerPool(clients, Requirements(VOCAB, 120), transport, (2,), PROMPTS)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def tiny_servers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TinyServers]:
    both = TinyServers(tmp_path_factory.mktemp("vllm"), request.param)
    yield both
    for servers in both.started.values():
        servers.stop()


def requests(count: int) -> list[Request]:
    return [Request(PROMPTS[i % 4], (5, i)) for i in range(count)]


def trainer_logps(lm: LM, asked: list[Request], sampled: list[list[Sampled]]) -> list[Any]:
    pairs: list[tuple[Ints, Ints]] = [
        (r.prompt, s.ids) for r, (s,) in zip(asked, sampled, strict=True)
    ]
    return list(PolicyWeights(lm, None).logps(pairs, 1.0))


def gap(lm: LM, asked: list[Request], sampled: list[list[Sampled]]) -> float:
    trainer = np.concatenate(trainer_logps(lm, asked, sampled))
    return float(np.abs(trainer - np.concatenate([s.logp for (s,) in sampled])).max())


def test_every_route_asks_for_the_key(tiny_servers: TinyServers) -> None:
    servers = tiny_servers.servers("adapter")
    [url] = servers.urls
    for path in ("/v1/completions", "/pause", "/resume", "/collective_rpc", "/update_weight_version",
                 "/reset_prefix_cache", "/v1/load_lora_adapter", "/weight_info", "/metrics"):  # fmt: skip
        assert httpx2.post(url + path, json={}).status_code == 401, path
        assert httpx2.get(url + path).status_code == 401, path
    assert httpx2.get(url + "/health").status_code == 200
    given = {"Authorization": f"Bearer {servers.key}"}
    assert httpx2.get(url + "/weight_info", headers=given).status_code == 200


@pytest.mark.parametrize("way", ["folder", "gloo", "adapter"])
def test_every_update_arrives(tiny_servers: TinyServers, tmp_path: Path, way: str) -> None:
    transports: dict[str, Transport] = {
        "folder": FolderSync(tmp_path / "weights"),
        "gloo": GroupSync("gloo", "127.0.0.1"),
        "adapter": AdapterSync(tmp_path / "adapters"),
    }
    lm = tiny_servers.policy(lora=way == "adapter")
    engine = tiny_servers.pool("adapter" if way == "adapter" else "gloo", transports[way])
    try:
        for version in range(5):
            move(lm, version, scale=0.02)
            update(engine, version, PolicyWeights(lm, folders.tokenizer()))
            sampled = generate(engine, requests(6), SAMPLING)
            assert gap(lm, requests(6), sampled) <= LIMIT and engine.gap <= LIMIT
            assert all(s.versions == ((0, len(s.ids), version),) for (s,) in sampled)
    finally:
        engine.close()


def test_a_stale_tied_head_stops_the_run(
    tiny_servers: TinyServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not tiny_servers.tied:
        pytest.skip("an untied head is always sent by name")
    write = sync_module.write_shards

    def without_head(tensors: Any, folder: Path) -> None:
        write((x for x in tensors if x[0] != "lm_head.weight"), folder)

    lm = tiny_servers.policy()
    engine = tiny_servers.pool("gloo", FolderSync(tmp_path / "weights"))
    try:
        monkeypatch.setattr(sync_module, "write_shards", without_head)
        move(lm, 9, scale=0.02)
        with pytest.raises(EngineError, match="after the update to version 9 its logprobs differ"):
            update(engine, 9, PolicyWeights(lm, None))
        monkeypatch.undo()
        update(engine, 10, PolicyWeights(lm, None))
        assert engine.gap <= LIMIT
    finally:
        engine.close()


def test_an_update_during_completions_is_said_per_token(
    tiny_servers: TinyServers, tmp_path: Path
) -> None:
    if not tiny_servers.tied:
        pytest.skip("one model is enough")
    old, new = tiny_servers.policy(), tiny_servers.policy()
    move(new, 3, scale=0.02)
    engine = tiny_servers.pool("gloo", FolderSync(tmp_path / "weights"))
    asked = requests(48)
    results: list[list[Sampled]] = []
    try:
        update(engine, 1, PolicyWeights(old, None))
        long = SamplingConfig(max_new_tokens=110)
        sampling = threading.Thread(
            target=lambda: results.extend(generate(engine, asked, long)), daemon=True
        )
        sampling.start()
        while not any(m.server.running for m in engine.members):
            time.sleep(0.01)
        time.sleep(1.0)
        update(engine, 2, PolicyWeights(new, None))
        sampling.join(300)
    finally:
        engine.close()
    assert len(results) == len(asked), "no prompt is lost"
    by_old, by_new = (trainer_logps(lm, asked, results) for lm in (old, new))
    mixed = 0
    for (s,), a, b in zip(results, by_old, by_new, strict=True):
        assert s.versions[0][0] == 0 and s.versions[-1][1] == len(s.ids)
        assert all(x[1] == y[0] for x, y in zip(s.versions, s.versions[1:], strict=False))
        mixed += len(s.versions) > 1
        for start, stop, version in s.versions:
            trainer = (a if version == 1 else b)[start:stop]
            assert np.abs(trainer - s.logp[start:stop]).max() <= LIMIT
    assert mixed > 0, "the update came in the middle of a completion"


def test_a_server_killed_during_a_broadcast(
    tiny_servers: TinyServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not tiny_servers.tied:
        pytest.skip("one model is enough")
    lm = tiny_servers.policy()
    transport = GroupSync("gloo", "127.0.0.1")
    engine = tiny_servers.pool("gloo", transport)
    processes = tiny_servers.servers("gloo").processes
    broadcast, sent = link_module.broadcast, 0

    def kill_at_the_third(group: Any, tensor: Any) -> None:
        nonlocal sent
        sent += 1
        if sent == 3:
            child = processes[1].child
            assert child is not None
            os.killpg(child.pid, signal.SIGKILL)
        broadcast(group, tensor)

    try:
        update(engine, 0, PolicyWeights(lm, None))
        monkeypatch.setattr(link_module, "broadcast", kill_at_the_third)
        move(lm, 1, scale=0.02)
        update(engine, 1, PolicyWeights(lm, None))
        assert transport.recoveries == 1
        assert [m.state for m in engine.members] == ["serving", "dead"]
        sampled = generate(engine, requests(8), SAMPLING)
        assert gap(lm, requests(8), sampled) <= LIMIT and engine.seconds < 60
        # Started again, it says "default"; the next update takes it in.
        tiny_servers.servers("gloo").watch()
        processes[1].wait()
        sampled = generate(engine, requests(8), SAMPLING)
        assert gap(lm, requests(8), sampled) <= LIMIT
        move(lm, 2, scale=0.02)
        update(engine, 2, PolicyWeights(lm, None))
        assert [m.state for m in engine.members] == ["serving", "serving"]
        assert gap(lm, requests(8), generate(engine, requests(8), SAMPLING)) <= LIMIT
    finally:
        engine.close()


def own_server(tmp_path: Path, **more: Any) -> dict[str, Any]:
    """GRPO with a server that the run starts."""
    model = model_folder(tmp_path / "model", tied=True)
    rows: Any = [{"prompt": f"who {w} ?"} for w in folders.WORDS[:6]]
    folders.write(tmp_path / "prompts.jsonl", rows)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    return {
        "out": str(tmp_path / "run"), "model": {"path": str(model)}, "method": {"type": "grpo"},
        "data": {"path": str(tmp_path / "prompts.jsonl")}, "rewards": [folders.WORDY], "steps": 3,
        "batch_size": 3, "sampling": {"max_new_tokens": 12}, "optim": {"lr": 1e-3},
        "rollout": {
            "engine": "vllm", "servers": 1, "sync": "gloo", "server_python": str(PYTHON),
            "server_args": list(ARGUMENTS),
        },
        **more,
    }  # fmt: skip


def assert_on_policy(metrics: dict[str, float], out: Path) -> None:
    assert metrics["sampler/ess"] == pytest.approx(1.0, abs=1e-3)
    assert abs(metrics["sampler/kl"]) < 1e-6
    assert not list((out / "rollout").glob("*.pid")), "the server is stopped"


def test_grpo_with_a_server_of_its_own(tmp_path: Path) -> None:
    assert_on_policy(main(build(RLConfig, own_server(tmp_path))), tmp_path / "run")


def test_grpo_with_a_server_that_ray_places(tmp_path: Path, local_ray: None) -> None:
    launch = {"type": "ray", "trainers": 1, "restarts": 0}
    find_command("rl").run(build(RLConfig, own_server(tmp_path, launch=launch)))
    rows = read_metrics(tmp_path / "run")
    assert len(rows) == 3
    assert_on_policy(rows[-1], tmp_path / "run")
    assert (tmp_path / "run" / "rollout" / "server-0.log").is_file()
