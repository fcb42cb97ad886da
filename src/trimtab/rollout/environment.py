"""Episodes of several turns: the policy calls tools of an environment, turn by turn.

Environments follow TRL's protocol (``environment_factory`` of its GRPO trainer): ``factory()`` makes one;
``reset(**row)`` begins an episode and may return text that is added to the prompt; public methods with type
hints and docstrings are tools; ``get_reward()`` is the episode's reward.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from pydantic import Field, model_validator

from trimtab.config import Config, FunctionPath, import_function
from trimtab.data.conversation import BadRowError, Message, content_text
from trimtab.data.render import Renderer
from trimtab.errors import ConfigError, DataError
from trimtab.rollout import tools as functions
from trimtab.rollout.engine import Engine, EngineError
from trimtab.rollout.thread import Episode, Thread, episode_group
from trimtab.rollout.tool_format import ToolFormat
from trimtab.sample.sampler import Request, Sampled, SamplingConfig
from trimtab.types import Group, Row, Score, Status


class EnvironmentSpec(Config):
    """Episodes of several turns. A limit that is met ends the episode and is its status."""

    factory: FunctionPath | dict[str, FunctionPath] | None = None
    """A class, or a function without arguments, that makes an environment: "package.module:Class". Or
    several by name: each row then has its own in the column ``environment``."""
    agent: FunctionPath | None = None
    """In place of a factory, a function that plays a whole episode with any client of OpenAI's API:
    ``f(base_url, prompt, **columns)``, plain or ``async``. It returns the reward, rewards by name, or None
    where ``rewards`` of the run decide."""
    options: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Keyword arguments of ``agent`` or of the factory."""
    max_seconds: float | None = Field(default=None, gt=0.0)
    """Seconds per episode of an ``agent``; one over it is "timeout"."""
    concurrency: int = Field(default=64, gt=0)
    """Episodes of an ``agent`` at the same time."""
    max_turns: int = Field(default=8, gt=0)
    """Turns of the policy; one that calls a tool in its last turn is "truncated"."""
    max_tokens: int = Field(default=4096, gt=0)
    """Tokens after the prompt, results of tools included; ``sampling.max_new_tokens`` is per turn."""
    timeout: float | None = Field(default=None, gt=0.0)
    """Seconds per call of a tool, ``reset`` or ``get_reward``, which then run in a thread of their own; an
    episode over it is "timeout" and has no reward. Without it, functions that are not ``async`` run one
    after another in the main thread, as in TRL."""
    max_observation_bytes: int = Field(default=65536, gt=0)
    """UTF-8 bytes of a tool's result; an episode over it is "truncated"."""

    @model_validator(mode="after")
    def _one(self) -> EnvironmentSpec:
        if self.agent is not None and self.factory is not None:
            raise ValueError("give factory or agent, not both")
        if self.agent is None and self.max_seconds is not None:
            raise ValueError("max_seconds belongs to agent; the limit of a call is timeout")
        return self


@dataclass(slots=True, eq=False)
class _Rollout:
    """One episode while it is played."""

    prompt: int
    index: int
    name: str | None
    """Of the environment's factory, where there are several."""
    environment: Any
    tools: dict[str, functions.Tool]
    columns: Row
    row: Row
    messages: list[Message]
    threads: list[Thread] = field(default_factory=list[Thread])
    status: Status = "ok"
    detail: str = ""
    score: Score | None = None
    calls: int = 0
    failures: int = 0

    def end(self, status: Status, detail: str) -> None:
        self.status, self.detail = status, detail

    @property
    def thread(self) -> Thread:
        return self.threads[-1]

    @property
    def tokens(self) -> int:
        """Tokens after the first prompt."""
        return len(self.thread.context) - len(self.threads[0].prompt)


class Environments:
    """Plays episodes of a policy with tools.

    Args:
        spec: The environment and its limits.
        tools: Import paths of functions that every episode may call as well.
        renderer: Of the policy.
        positions: The model's number of positions, if it has one.

    Raises:
        ConfigError: something cannot be imported, has no ``reset``, or is no tool.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        tools: Sequence[str],
        renderer: Renderer,
        positions: int | None,
    ) -> None:
        self.spec, self.positions = spec, positions
        self.format = ToolFormat(renderer)
        self.tools = [import_function(path, "tools") for path in tools]
        named = spec.factory if isinstance(spec.factory, dict) else {None: spec.factory}
        self.factories = {
            name: import_function(path, "environment.factory")
            for name, path in named.items()
            if path is not None
        }
        self._idle: dict[str | None, list[Any]] = {}
        self._schemas: dict[str | None, list[Row]] = {}
        self.reward_names: set[str] = set()
        """Classes of environments that have a reward."""
        if not self.factories:
            self._schemas[None] = [
                functions.schema(t) for t in functions.by_name(self.tools).values()
            ]
        for name, factory in self.factories.items():
            environment = factory(**spec.options)
            if not callable(getattr(environment, "reset", None)):
                raise ConfigError(
                    f"environment.factory: {type(environment).__name__} has no method reset"
                )
            own = functions.by_name([*self.tools, *functions.methods(environment)])
            self._schemas[name] = [functions.schema(t) for t in own.values()]
            self._idle[name] = [environment]
            if hasattr(environment, "get_reward"):
                self.reward_names.add(type(environment).__name__)
        # One loop for the whole run: clients that environments open belong to it.
        self._loop = asyncio.new_event_loop()

    def __call__(
        self,
        engine: Engine,
        prompts: Sequence[Group],
        sampling: SamplingConfig,
        *,
        n: int,
        key: tuple[int, ...],
    ) -> list[Group]:
        """``n`` episodes of each prompt.

        All episodes take a turn together, then their tools are called. Every draw follows from the key, the
        prompt's index, the episode's and the turn's.

        Args:
            prompts: Conversations; their rows' columns are arguments of ``reset``.

        Returns:
            Groups with the ids and log-probs of the sampler, and the environment's rewards as scores. An
            episode whose environment or engine failed has a score with a status instead.

        Raises:
            DataError: a prompt is no conversation, or the chat template refuses it.
        """
        rollouts = [self._rollout(group, p, i) for p, group in enumerate(prompts) for i in range(n)]
        self._loop.run_until_complete(self._play(engine, rollouts, sampling, key))
        episodes = [_episode(r) for r in rollouts]
        groups = [episode_group(g, episodes[p * n : (p + 1) * n]) for p, g in enumerate(prompts)]
        for rollout in rollouts:
            # After a timeout a call may still be running in it.
            if rollout.environment is not None and rollout.status in ("ok", "truncated"):
                self._idle[rollout.name].append(rollout.environment)
        return groups

    def _rollout(self, group: Group, prompt: int, index: int) -> _Rollout:
        messages = cast("list[Message] | None", group.extra.get("messages"))
        if messages is None:
            raise DataError(
                f"prompt {group.id}: an environment needs conversations; give the prompt as a list of "
                "messages"
            )
        name = (
            None if None in self.factories or not self.factories else group.extra.get("environment")
        )
        if name not in self._schemas:
            raise DataError(
                f"prompt {group.id}: the column 'environment' is {name!r}; it must be one of "
                f"{', '.join(map(str, self.factories))}"
            )
        environment = None
        if self.factories:
            idle = self._idle.setdefault(name, [])
            environment = idle.pop() if idle else self.factories[name](**self.spec.options)
        own = functions.methods(environment) if environment is not None else []
        row = {k: v for k, v in group.extra.items() if k != "messages"}
        columns: Row = {"tools": self._schemas[name]}
        if "chat_template_kwargs" in row:
            columns["chat_template_kwargs"] = row["chat_template_kwargs"]
        tools = functions.by_name([*self.tools, *own])
        return _Rollout(prompt, index, name, environment, tools, columns, row, list(messages))

    async def _play(
        self,
        engine: Engine,
        rollouts: list[_Rollout],
        sampling: SamplingConfig,
        key: tuple[int, ...],
    ) -> None:
        await asyncio.gather(*map(self._reset, rollouts))
        live = [r for r in rollouts if r.status == "ok"]
        for turn in range(self.spec.max_turns):
            live = [r for r in live if self._room(r)]
            sampled = await self._sample(engine, live, sampling, key, turn)
            for r, result in zip(live, sampled, strict=True):
                if isinstance(result, BaseException):
                    r.end("failed", f"engine: {result}")
                    continue
                reply = self.format.reply(r.thread.context, result.ids.tolist(), r.columns)
                r.thread.add_turn(result, reply)
                if result.finish == "length":
                    r.end("truncated", "a turn reached its limit of tokens")
            live = [r for r in live if r.status == "ok" and r.thread.messages[-1].get("tool_calls")]
            if turn + 1 == self.spec.max_turns:
                for r in live:
                    r.end("truncated", f"{self.spec.max_turns} turns (environment.max_turns)")
                break
            await asyncio.gather(*map(self._act, live))
            live = [r for r in live if r.status == "ok"]
        await asyncio.gather(*map(self._reward, rollouts))

    async def _reset(self, r: _Rollout) -> None:
        first: Any = None
        if r.environment is not None:
            row = {k: v for k, v in r.row.items() if k != "environment" or None in self.factories}
            first = await self._own_call(r, "reset", {"prompt": r.messages, **row})
        if r.status != "ok":
            return
        if first is not None:
            last = r.messages[-1]
            content = content_text(last.get("content")) + content_text(first)
            r.messages[-1] = {**last, "content": content}
        r.threads.append(self._thread(r, r.messages))

    def _thread(self, r: _Rollout, messages: list[Message]) -> Thread:
        try:
            context = self.format.context(messages, r.columns)
        except BadRowError as error:
            raise DataError(f"prompt {r.prompt}: {error}") from None
        return Thread(context, list(messages), opening=len(r.messages))

    async def _own_call(self, r: _Rollout, name: str, arguments: Row) -> Any:
        """Call the environment itself; a failure ends the episode."""
        try:
            return await functions.call(getattr(r.environment, name), arguments, self.spec.timeout)
        except functions.DeadlineError as error:
            r.end("timeout", str(error))
        except Exception as error:  # noqa: BLE001  user code may raise anything; it becomes a status
            r.end("failed", f"{name} raised {type(error).__name__}: {error}")
        return None

    def _room(self, r: _Rollout, extra: int = 0) -> int:
        """Tokens that the next turn may have after ``extra`` others; at 0 the episode ends."""
        room = self.spec.max_tokens - r.tokens - extra
        if self.positions is not None:
            room = min(room, self.positions - len(r.thread.context) - extra)
        if room <= 0:
            r.end(
                "truncated",
                "the limit of tokens of the episode (environment.max_tokens) or the model",
            )
        return max(0, room)

    async def _sample(
        self,
        engine: Engine,
        live: list[_Rollout],
        sampling: SamplingConfig,
        key: tuple[int, ...],
        turn: int,
    ) -> list[Sampled | BaseException]:
        """The next turn of each rollout. In their first turn, rollouts of one prompt share it."""
        shared: dict[tuple[int, ...], list[_Rollout]] = {}
        for r in live:
            own = (*key, r.prompt) if turn == 0 else (*key, r.prompt, r.index, turn)
            shared.setdefault(own, []).append(r)
        works: list[Any] = []
        owners: list[list[_Rollout]] = []
        for own, members in shared.items():
            same = all(m.thread.prompt == members[0].thread.prompt for m in members)
            for some in [members] if same else [[m] for m in members]:
                prompt = np.array(some[0].thread.context, dtype=np.int64)
                own_key = own if same else (*own, some[0].index)
                request = Request(prompt, own_key, len(some), self._room(some[0]))
                works.append(engine.generate(request, sampling))
                owners.append(some)
        results = await asyncio.gather(*works, return_exceptions=True)
        by_rollout: dict[int, Sampled | BaseException] = {}
        for some, result in zip(owners, results, strict=True):
            if isinstance(result, BaseException) and not isinstance(result, EngineError):
                raise result
            for i, r in enumerate(some):
                by_rollout[id(r)] = result if isinstance(result, BaseException) else result[i]
        return [by_rollout[id(r)] for r in live]

    async def _act(self, r: _Rollout) -> None:
        """Call the tools that the last turn asks for, and add their results."""
        messages: list[Message] = []
        for tool_call in cast("list[Row]", r.thread.messages[-1]["tool_calls"]):
            function = tool_call["function"]
            name, r.calls = function["name"], r.calls + 1
            try:
                if name not in r.tools:
                    raise LookupError(f"Tool {name} not found.")
                result = await functions.call(
                    r.tools[name], function["arguments"], self.spec.timeout
                )
                content = functions.observation(result)
            except functions.DeadlineError as error:
                r.end("timeout", str(error))
                return
            except Exception as error:  # noqa: BLE001  the policy reads what a tool raises
                r.failures += 1
                content = str({"error": str(error)})
            size = len(content_text(content).encode("utf-8", "replace"))
            if size > self.spec.max_observation_bytes:
                limit = self.spec.max_observation_bytes
                r.end(
                    "truncated", f"{name} returned {size} bytes, over max_observation_bytes {limit}"
                )
                return
            messages.append({"role": "tool", "name": name, "content": content})
        thread, stop = r.thread, set(self.format.renderer.stop_ids)
        try:
            ids = self.format.between(
                thread.messages, messages, r.columns, ended=thread.ids[-1] in stop
            )
        except BadRowError as error:
            r.end("failed", str(error))
            return
        if ids is None:
            # The template rewrites earlier turns: the episode goes on in a new context.
            r.threads.append(self._thread(r, [*thread.messages, *messages]))
        elif self._room(r, len(ids)):
            thread.extend(ids, messages)

    async def _reward(self, r: _Rollout) -> None:
        if not hasattr(r.environment, "get_reward"):
            return
        if r.status in ("ok", "truncated"):
            value = await self._own_call(r, "get_reward", {})
            if r.status in ("ok", "truncated"):
                ok = isinstance(value, int | float) and math.isfinite(value)
                r.score = (
                    Score(float(value)) if ok else Score(None, "invalid", f"reward {value!r:.80}")
                )


def _episode(r: _Rollout) -> Episode:
    extra = {} if r.environment is None else {"environments": r.environment}
    return Episode(r.threads, r.status, r.detail, _scores(r), extra)


def _scores(r: _Rollout) -> dict[str, Score]:
    """The environment's reward, or why there is none; calls of tools and those that failed."""
    scores = {"tools/calls": Score(float(r.calls)), "tools/failures": Score(float(r.failures))}
    name = "environment" if r.environment is None else type(r.environment).__name__
    if r.status in ("failed", "timeout"):
        scores[name] = Score(None, "timeout" if r.status == "timeout" else "error", r.detail)
    elif r.score is not None:
        scores[name] = r.score
    return scores
