"""Episodes in environments: masks, limits, failures, and rewards."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from tests.support.chatml import chatml_model
from tests.support.scripted_engine import ScriptedEngine, last_message, mask_runs, replies
from trimtab.data.formats import Example
from trimtab.data.render import Renderer
from trimtab.errors import ConfigError, DataError
from trimtab.objectives.methods import METHODS
from trimtab.rollout.environment import Environments, EnvironmentSpec
from trimtab.rollout.episode_scores import score_episodes
from trimtab.sample.sampler import SamplingConfig
from trimtab.train.advantages import assign_advantages
from trimtab.types import Group


def tool_call(name: str, **arguments: Any) -> str:
    body = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{body}\n</tool_call>"


class IncrementEnv:
    """The example of TRL's documentation of GRPO ("Environments"), with a fixed target."""

    def reset(self, **kwargs: Any) -> str | None:
        self.counter = 0
        self.target = kwargs.get("target", 3)
        return f"Increment the counter by {self.target}."

    def get_reward(self) -> float:
        return float(self.counter == self.target)

    def increment(self, step: int) -> int:
        """
        Increment the internal counter.

        Args:
            step: Value to add to the counter.

        Returns:
            The updated counter value.
        """
        self.counter += step
        return self.counter


def multiply(a: int, b: int) -> int:
    """
    Multiplies two integers.

    Args:
        a: The first integer.
        b: The second integer.

    Returns:
        The product of the two integers.
    """
    return a * b


async def async_add(a: int, b: int) -> int:
    """
    Adds two integers.

    Args:
        a: The first integer.
        b: The second integer.
    """
    await asyncio.sleep(0.001)
    return a + b


def slow(seconds: float) -> str:
    """
    Takes its time.

    Args:
        seconds: How long.
    """
    time.sleep(seconds)
    return "done"


def long(size: int) -> str:
    """
    Returns a long text.

    Args:
        size: How long.
    """
    return "é" * size


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("chatml")
    return AutoTokenizer.from_pretrained(chatml_model(folder)[1])


@pytest.fixture
def renderer(tokenizer: Any) -> Iterator[Renderer]:
    template = tokenizer.chat_template
    yield Renderer(tokenizer)
    tokenizer.chat_template = template


def prompt(renderer: Renderer, text: str = "Play. ", **row: Any) -> Group:
    group = renderer.prompt(Example("0", [{"role": "user", "content": text}], [], extra=row))
    assert group is not None
    return group


def play(
    renderer: Renderer,
    script: Callable[[str], str | None],
    *tools: str,
    n: int = 1,
    row: dict[str, Any] | None = None,
    max_new_tokens: int = 400,
    positions: int | None = None,
    **keys: Any,
) -> tuple[Group, ScriptedEngine]:
    environments = Environments(EnvironmentSpec(**keys), tools, renderer, positions)
    engine = ScriptedEngine(renderer, script)
    sampling = SamplingConfig(max_new_tokens=max_new_tokens)
    groups = environments(engine, [prompt(renderer, **(row or {}))], sampling, n=n, key=(0,))
    score_episodes(groups, lambda _: None if not tools else set_zero(groups))
    return groups[0], engine


def set_zero(groups: list[Group]) -> None:
    for c in (c for g in groups for c in g.completions):
        c.reward = 0.0


HERE = "tests.rollout.test_environment"
ENVIRONMENT = f"{HERE}:IncrementEnv"


def test_trls_example_is_played_and_only_sampled_tokens_are_trained(renderer: Renderer) -> None:
    script = replies(
        f"Adding.\n{tool_call('increment', step=1)}", tool_call("increment", step=2), "3"
    )
    group, engine = play(renderer, script, factory=ENVIRONMENT, n=2)
    for c in group.completions:
        assert c.status == "ok" and c.reward == 1.0 and c.finish == "stop"
        assert c.scores["IncrementEnv"].value == 1.0 and c.scores["tools/calls"].value == 2.0
        assert mask_runs(c.mask) == [(t.start, t.stop) for t in c.turns] and len(c.turns) == 3
        assert c.versions[-1] == (c.turns[1].stop, len(c), 7) and c.version == 7
        for turn, index in zip(c.turns, (0, 2, 4), strict=True):
            sampled = engine.samples[index]
            assert np.array_equal(c.ids[turn.start : turn.stop], sampled.ids)
            assert np.array_equal(c.tokens["sampler_logp"][turn.start : turn.stop], sampled.logp)
        assert not c.tokens["sampler_logp"][~c.mask].any()
        text = renderer.tokenizer.decode(c.ids[c.turns[0].stop : c.turns[1].start].tolist())
        assert text == "\n<|im_start|>tool\n1<|im_end|>\n<|im_start|>assistant\n"
        assert c.messages is not None
        assert [m["role"] for m in c.messages] == ["assistant", "tool"] * 2 + ["assistant"]
        assert c.messages[0]["content"] == "Adding." and c.messages[-1]["content"] == "3"
    # What the policy read is prompt + completion, without anything tokenised again.
    whole = np.concatenate([group.prompt, group.completions[0].ids])
    assert np.array_equal(engine.requests[-1].prompt, whole[: len(engine.requests[-1].prompt)])
    text = renderer.tokenizer.decode(group.prompt.tolist())
    assert "Play. Increment the counter by 3." in text and '"increment"' in text


def test_columns_reach_reset_and_environments_do_not_mix(renderer: Renderer) -> None:
    script = replies(tool_call("increment", step=2), "done")
    group, _ = play(renderer, script, factory=ENVIRONMENT, n=3, row={"target": 2})
    assert [c.reward for c in group.completions] == [1.0, 1.0, 1.0]
    group, _ = play(renderer, script, factory=ENVIRONMENT, row={"target": 5})
    assert group.completions[0].reward == 0.0


def test_tools_from_functions(renderer: Renderer) -> None:
    calls = f"{tool_call('multiply', a=6, b=7)}\n{tool_call('async_add', a=1, b=2)}"
    group, _ = play(renderer, replies(calls, "42"), f"{HERE}:multiply", f"{HERE}:async_add")
    (c,) = group.completions
    assert c.messages is not None
    assert [m["content"] for m in c.messages] == ["", "42", "3", "42"]
    assert c.messages[0]["tool_calls"][1]["function"]["name"] == "async_add"


@pytest.mark.parametrize(
    ("reply", "content"),
    [
        (tool_call("multiply", a=1), "{'error': \"multiply() missing 1 required"),
        (tool_call("divide", a=1), "{'error': 'Tool divide not found.'}"),
        (tool_call("multiply", a="x", b={}), "{'error': \"can't multiply sequence"),
    ],
)
def test_a_tool_that_fails_tells_the_policy(renderer: Renderer, reply: str, content: str) -> None:
    group, _ = play(renderer, replies(reply, "oh"), f"{HERE}:multiply")
    (c,) = group.completions
    assert c.messages is not None and c.messages[1]["content"].startswith(content)
    assert c.status == "ok" and c.scores["tools/failures"].value == 1.0


def test_a_call_that_cannot_be_read_is_text(renderer: Renderer) -> None:
    group, _ = play(renderer, replies("<tool_call>multiply(1)</tool_call>"), f"{HERE}:multiply")
    (c,) = group.completions
    assert len(c.turns) == 1 and c.text == "<tool_call>multiply(1)</tool_call>"


FOREVER = tool_call("multiply", a=1, b=1)


@pytest.mark.parametrize(
    ("limits", "turns"), [({"max_turns": 3}, 3), ({"max_tokens": 300}, 4), ({"positions": 700}, 2)]
)
def test_limits_of_turns_and_tokens(renderer: Renderer, limits: dict[str, int], turns: int) -> None:
    group, engine = play(renderer, lambda _: FOREVER, f"{HERE}:multiply", **limits)
    (c,) = group.completions
    assert c.status == "truncated" and c.truncated and c.reward == 0.0
    assert len(c.turns) == turns == len(engine.requests)
    assert len(c) <= limits.get("max_tokens", 4096)
    assert len(group.prompt) + len(c) <= limits.get("positions", 4096)
    assert c.mask[-1], "no result of a tool that nobody answers is at the end"


def test_a_turn_over_its_limit_ends_the_episode(renderer: Renderer) -> None:
    group, _ = play(renderer, lambda _: FOREVER, f"{HERE}:multiply", max_new_tokens=5)
    (c,) = group.completions
    assert c.status == "truncated" and c.finish == "length" and len(c) == 5


@pytest.mark.parametrize(
    ("tool", "reply", "keys", "status"),
    [
        ("slow", tool_call("slow", seconds=5.0), {"timeout": 0.2}, "timeout"),
        ("long", tool_call("long", size=600), {"max_observation_bytes": 1000}, "truncated"),
    ],
)
def test_limits_of_a_call(
    renderer: Renderer, tool: str, reply: str, keys: dict[str, Any], status: str
) -> None:
    start = time.monotonic()
    group, _ = play(renderer, replies(reply, "x"), f"{HERE}:{tool}", n=2, **keys)
    assert time.monotonic() - start < 3.0
    for c in group.completions:
        assert c.status == status and len(c.turns) == 1
        assert c.reward == (None if status == "timeout" else 0.0)
    within, _ = play(renderer, replies(tool_call("long", size=400), "x"), f"{HERE}:long",
                     max_observation_bytes=1000)  # fmt: skip
    assert within.completions[0].status == "ok"


class Broken(IncrementEnv):
    def reset(self, fails: str = "", **kwargs: Any) -> str | None:
        self.fails = fails
        if fails == "reset":
            raise ValueError("no board")
        return super().reset(**kwargs)

    def get_reward(self) -> float:
        if self.fails == "get_reward":
            raise ValueError("no score")
        return float("nan") if self.fails == "nan" else super().get_reward()


@pytest.mark.parametrize("fails", ["reset", "get_reward", "nan"])
def test_a_failure_of_the_environment_is_a_status_and_no_number(
    renderer: Renderer, fails: str
) -> None:
    group, _ = play(renderer, replies("x"), factory=f"{HERE}:Broken", row={"fails": fails}, n=2)
    for c in group.completions:
        assert c.reward is None and not c.scores["Broken"].ok
        assert c.status == ("ok" if fails == "nan" else "failed")
        assert (len(c) == 0) == (fails == "reset")


def test_an_engine_that_fails_one_request_fails_one_episode(renderer: Renderer) -> None:
    def script(text: str) -> str | None:
        return None if last_message(text) == "Play. Increment the counter by 4." else "x"

    environments = Environments(EnvironmentSpec(factory=ENVIRONMENT), (), renderer, None)
    prompts = [prompt(renderer, target=t) for t in (3, 4)]
    engine = ScriptedEngine(renderer, script)
    groups = environments(engine, prompts, SamplingConfig(), n=1, key=(0,))
    score_episodes(groups, lambda _: None)
    assert [g.completions[0].status for g in groups] == ["ok", "failed"]
    assert groups[1].completions[0].scores["IncrementEnv"].detail == "engine: the server is away"


STRIPS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and not loop.last %}{{ m['content'].split('</think>')[-1] }}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_a_template_that_drops_thoughts_splits_the_episode(renderer: Renderer) -> None:
    renderer.tokenizer.chat_template = STRIPS
    first = f"<think>hm</think>{tool_call('increment', step=3)}"
    group, engine = play(
        Renderer(renderer.tokenizer), replies(first, "done"), factory=ENVIRONMENT, n=2
    )
    assert [c.episode for c in group.completions] == [0, 0, 1, 1]
    for c in group.completions:
        (turn,) = c.turns
        assert mask_runs(c.mask) == [(turn.start, turn.stop)] and c.reward == 1.0
    second = group.completions[1]
    whole = np.concatenate([group.prompt, second.ids[: second.turns[0].start]])
    assert np.array_equal(whole, engine.requests[1].prompt)
    assert "hm" not in renderer.tokenizer.decode(whole.tolist())
    group.completions[2].reward = group.completions[3].reward = 0.0
    for c in group.completions:
        c.tokens["old_logp"] = c.tokens["ref_logp"] = c.tokens["sampler_logp"]
    assign_advantages([group], METHODS["grpo"](), 0.0)
    first_two = [c.tokens["advantage"][c.mask] for c in group.completions[:2]]
    assert np.allclose(np.concatenate(first_two), np.sqrt(0.5), atol=1e-4)


def test_errors_name_what_is_wrong(renderer: Renderer) -> None:
    def build(factory: Any, *tools: str) -> Environments:
        return Environments(EnvironmentSpec(factory=factory), tools, renderer, None)

    with pytest.raises(ConfigError, match="has no method reset"):
        build("builtins:dict")
    with pytest.raises(ConfigError, match=r"tool 'last_message'.*docstring"):
        build(None, "tests.support.scripted_engine:last_message")
    with pytest.raises(ConfigError, match="two tools are named 'multiply'"):
        build(None, f"{HERE}:multiply", f"{HERE}:multiply")
    plain = renderer.prompt(Example("0", "text", []))
    assert plain is not None
    engine, sampling = ScriptedEngine(renderer, replies("x")), SamplingConfig()
    with pytest.raises(DataError, match="needs conversations"):
        build(ENVIRONMENT)(engine, [plain], sampling, n=1, key=(0,))
    several = build({"counter": ENVIRONMENT})
    with pytest.raises(DataError, match="must be one of counter"):
        several(engine, [prompt(renderer)], sampling, n=1, key=(0,))
    (group,) = several(engine, [prompt(renderer, environment="counter")], sampling, n=1, key=(0,))
    assert group.completions[0].status == "ok"
