"""Agents with OpenAI's client behind the recording endpoint, sampled by a real engine."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from openai import APIStatusError, AsyncOpenAI, OpenAI

from tests.support.chatml import chatml_model
from tests.support.scripted_engine import ScriptedEngine, mask_runs, replies
from trimtab.config import build
from trimtab.data.formats import Example
from trimtab.data.load_tokenizer import load_tokenizer
from trimtab.data.pack import packs, scatter
from trimtab.data.render import Renderer
from trimtab.errors import ConfigError
from trimtab.models.load import LM, ModelSpec
from trimtab.rollout.agents import Agents
from trimtab.rollout.engine import Engine
from trimtab.rollout.engines.native import NativeEngine
from trimtab.rollout.environment import EnvironmentSpec
from trimtab.rollout.episode_scores import score_episodes
from trimtab.sample.sampler import SamplingConfig
from trimtab.types import Group

HERE = "tests.rollout.test_recorder"
TURNS, SESSIONS = 4, 6


async def appends(base_url: str, prompt: list[dict[str, Any]]) -> float:
    """An agent that appends every reply and asks on."""
    client = AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0)
    messages: list[Any] = list(prompt)
    for turn in range(TURNS):
        reply = await client.chat.completions.create(model="policy", messages=messages)
        messages += [reply.choices[0].message, {"role": "user", "content": f"And {turn}?"}]
    return 1.0


def rewrites(base_url: str, prompt: list[dict[str, Any]]) -> dict[str, float]:
    """An agent that streams, and shortens its history in the middle; a plain function."""
    client = OpenAI(base_url=base_url, api_key="none", max_retries=0)
    messages: list[Any] = list(prompt)
    for turn in range(TURNS):
        if turn == 2:
            messages = [messages[0], {"role": "user", "content": "Go on."}]
        text = ""
        for chunk in client.chat.completions.create(model="x", messages=messages, stream=True):
            text += chunk.choices[0].delta.content or ""
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "And?"}]
    return {"first": 0.5, "second/part": 0.25}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> tuple[LM, Renderer]:
    config, tokenizer = chatml_model(tmp_path_factory.mktemp("model"))
    torch.manual_seed(0)
    lm = LM.load(build(ModelSpec, {"path": str(config), "device": "cpu"}))
    with torch.no_grad():
        for p in lm.model.parameters():
            p.mul_(4.0 if p.ndim > 1 else 1.0)
    return lm, Renderer(load_tokenizer(str(tokenizer)))


def prompts(renderer: Renderer, count: int) -> list[Group]:
    groups: list[Group] = []
    for i in range(count):
        message = {"role": "user", "content": f"Tell me about the river {i}"}
        group = renderer.prompt(Example(str(i), [message], []))
        assert group is not None
        groups.append(group)
    return groups


def play(
    engine: Engine,
    renderer: Renderer,
    agent: str,
    n: int = 2,
    count: int = 3,
    tokens: int = 12,
    **keys: Any,
) -> list[Group]:
    agents = Agents(EnvironmentSpec(agent=f"{HERE}:{agent}", **keys), renderer, 512)
    sampling = SamplingConfig(max_new_tokens=tokens)
    groups = agents(engine, prompts(renderer, count), sampling, n=n, key=(0, 0))
    score_episodes(
        groups, lambda gs: [setattr(c, "reward", 0.0) for g in gs for c in g.completions] and None
    )
    return groups


@pytest.mark.parametrize(("agent", "forks"), [("appends", 0), ("rewrites", 1)])
def test_what_agents_sampled_is_what_is_trained_on(
    policy: tuple[LM, Renderer], agent: str, forks: int
) -> None:
    lm, renderer = policy
    engine = NativeEngine.of(lm, renderer)
    emitted: list[tuple[list[int], list[int], list[float]]] = []
    sampler = engine.sampler.__call__

    def recording(requests: Any, *rest: Any) -> Any:
        results = sampler(requests, *rest)
        for request, (one,) in zip(requests, results, strict=True):
            emitted.append((request.prompt.tolist(), one.ids.tolist(), one.logp.tolist()))
        return results

    engine.sampler = recording  # pyright: ignore[reportAttributeAccessIssue]
    groups = play(engine, renderer, agent)
    turns: list[tuple[list[int], list[int], list[float]]] = []
    for group in groups:
        assert len(group.episodes) == SESSIONS // len(groups)
        for episode in group.episodes:
            assert len(episode) == 1 + forks
            assert sum(len(c.turns) for c in episode) == TURNS
            for c in episode:
                assert mask_runs(c.mask) == [(t.start, t.stop) for t in c.turns]
                assert c.reward == (1.0 if agent == "appends" else 0.75) and c.status == "ok"
                for t in c.turns:
                    context = [*group.prompt.tolist(), *c.ids[: t.start].tolist()]
                    logp = c.tokens["sampler_logp"][t.start : t.stop].tolist()
                    turns.append((context, c.ids[t.start : t.stop].tolist(), logp))
    # Every token that was sampled is trained on once, in the context it was sampled in.
    assert sorted(turns) == sorted(emitted) and len(turns) == SESSIONS * TURNS
    worst = 0.0
    for pack in packs(groups, 2048, share=lm.exact):
        with torch.no_grad():
            logp_C = lm.logps(lm.states(pack), pack, 1.0)[0]
        scatter(pack, {"packed": logp_C.numpy()})
        for c in (c for g in pack.groups for c in g.completions):
            difference = np.abs(c.tokens["packed"] - c.tokens["sampler_logp"])[c.mask]
            worst = max(worst, float(difference.max()))
    assert worst <= 1e-4, worst


def asks(base_url: str, prompt: Any, **extra: Any) -> Any:
    client = OpenAI(base_url=base_url, api_key="none", max_retries=0)
    return client.chat.completions.create(model="policy", messages=prompt, **extra)


SCHEMA = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}},
}  # fmt: skip
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def with_tools(base_url: str, prompt: Any) -> float:
    first = asks(base_url, prompt, tools=[SCHEMA], temperature=0.1)
    choice = first.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    (call,) = choice.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("add", '{"a": 1}')
    result = {"role": "tool", "tool_call_id": call.id, "content": "3"}
    messages = [*prompt, choice.message.model_dump(), result]
    last = asks(base_url, messages, tools=[SCHEMA])
    assert last.choices[0].message.content == "3" and last.choices[0].finish_reason == "stop"
    assert last.usage.completion_tokens > 0
    return 1.0


def test_tool_calls_through_the_protocol(policy: tuple[LM, Renderer]) -> None:
    renderer = policy[1]
    engine = ScriptedEngine(renderer, replies(CALL, "3"))
    (group,) = play(engine, renderer, "with_tools", n=1, count=1, tokens=200)
    (c,) = group.completions
    assert c.scores["with_tools"].detail == "" and c.status == "ok" and len(c.turns) == 2
    assert c.messages is not None and [m["role"] for m in c.messages][1] == "tool"
    assert c.messages[1]["name"] == "add"


def too_many(base_url: str, prompt: Any) -> float:
    for _ in range(9):
        prompt = [
            *prompt,
            asks(base_url, prompt).choices[0].message,
            {"role": "user", "content": "?"},
        ]
    return 1.0


def sleeps(base_url: str, prompt: Any) -> float:
    asks(base_url, prompt)
    time.sleep(3.0)
    return 1.0


async def raises(base_url: str, prompt: Any) -> None:
    await asyncio.sleep(0)
    asks_nothing = prompt[0]["nothing"]
    raise AssertionError(asks_nothing)


def idles(base_url: str) -> float:
    return 1.0


def words(base_url: str, prompt: Any) -> str:
    asks(base_url, prompt)
    return "good"


def no_address(prompt: Any) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("agent", "keys", "status", "detail"),
    [
        ("too_many", {"max_turns": 3}, "truncated", "3 turns"),
        ("too_many", {"max_tokens": 60}, "truncated", "limit of tokens"),
        ("sleeps", {"max_seconds": 1.0}, "timeout", "over 1 s"),
        ("raises", {}, "failed", "raises raised KeyError"),
        ("idles", {}, "failed", "did not ask"),
        ("words", {}, "failed", "not a number"),
    ],
)
def test_limits_and_failures_of_agents(
    policy: tuple[LM, Renderer], agent: str, keys: dict[str, Any], status: str, detail: str
) -> None:
    renderer = policy[1]
    engine = ScriptedEngine(renderer, replies("fine"))
    (group,) = play(engine, renderer, agent, n=2, count=1, **keys)
    for c in group.completions:
        assert c.status == status and c.reward is None
        assert detail in c.scores[agent].detail


def test_requests_that_are_refused(policy: tuple[LM, Renderer]) -> None:
    from trimtab.rollout.recorder import Recorder

    renderer = policy[1]
    recorder = Recorder(ScriptedEngine(renderer, replies("fine")), renderer, None)
    try:
        session = recorder.open((0,), 8, 100)
        assert recorder.url.startswith("http://127.0.0.1:")
        assert len(session.token) >= 32 and session.token in session.base_url
        with pytest.raises(APIStatusError, match="no such session"):
            asks(
                session.base_url.replace(session.token, "guess"), [{"role": "user", "content": "a"}]
            )
        with pytest.raises(APIStatusError, match="n must be 1"):
            asks(session.base_url, [{"role": "user", "content": "a"}], n=2)
        with pytest.raises(APIStatusError, match="messages must be"):
            asks(session.base_url, [])
        bad = httpx2.post(f"{session.base_url}/chat/completions", content=b"{")
        assert bad.status_code == 400 and "no JSON" in bad.json()["error"]["message"]
        assert not session.episode().threads and session.status == "ok"
        recorder.close(session)
        with pytest.raises(APIStatusError, match="its episode has ended"):
            asks(session.base_url, [{"role": "user", "content": "a"}])
    finally:
        recorder.stop()
    with pytest.raises(ConfigError, match="no parameter base_url"):
        Agents(EnvironmentSpec(agent=f"{HERE}:no_address"), renderer, None)
