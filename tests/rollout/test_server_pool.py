"""Servers as one engine: checks, sync, probe, failures. The servers are real, with our own sampler."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import folders
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
from trimtab.config import build
from trimtab.errors import ConfigError
from trimtab.models.lora import LoraSpec
from trimtab.rollout.engine import EngineError, generate, update
from trimtab.rollout.engines.member import Member, choose
from trimtab.rollout.engines.pool import ServerPool
from trimtab.rollout.engines.server_process import assign_gpus
from trimtab.rollout.engines.vllm import Requirements, VLLMServer, stream_seed
from trimtab.rollout.policy_weights import PolicyWeights
from trimtab.rollout.sync import AdapterSync, FolderSync
from trimtab.sample.sampler import Sampled
from trimtab.train.rl import main
from trimtab.train.rl_config import RLConfig

pytestmark = pytest.mark.usefixtures("quick_heartbeat")


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
