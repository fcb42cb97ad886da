"""Episodes that agents play through the recording endpoint, with any client of OpenAI's API."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from trimtab.config import import_function
from trimtab.data.render import Renderer
from trimtab.errors import ConfigError
from trimtab.rewards.signature import Signature
from trimtab.rollout import tools as functions
from trimtab.rollout.engine import Engine
from trimtab.rollout.environment import Environments, EnvironmentSpec
from trimtab.rollout.thread import Episode, episode_group
from trimtab.sample.sampler import SamplingConfig
from trimtab.types import Group, Row, Score

if TYPE_CHECKING:
    from trimtab.rollout.recorder import Recorder, Session


def load_environments(
    spec: EnvironmentSpec,
    tools: Sequence[str],
    renderer: Renderer,
    positions: int | None,
    has_rewards: bool,
) -> Environments | Agents:
    """What plays the episodes of a run.

    Args:
        has_rewards: Whether the run has rewards besides those of the environment.

    Raises:
        ConfigError: as ``Environments`` and ``Agents``, or there is no reward.
    """
    if spec.agent is not None:
        return Agents(spec, renderer, positions)
    environments = Environments(spec, tools, renderer, positions)
    if not has_rewards and not environments.reward_names:
        raise ConfigError(
            "there is no reward: set rewards, or give the environment a method get_reward"
        )
    return environments


class Agents:
    """Plays episodes by a function that is given the address of the policy.

    Args:
        spec: The agent and its limits.
        renderer: Of the policy.
        positions: The model's number of positions, if it has one.

    Raises:
        ConfigError: the function cannot be imported, does not take ``base_url``, or the packages of the
            endpoint are not installed.
    """

    def __init__(self, spec: EnvironmentSpec, renderer: Renderer, positions: int | None) -> None:
        assert spec.agent is not None
        self.spec, self.renderer, self.positions = spec, renderer, positions
        self.function = import_function(spec.agent, "environment.agent")
        self.name = str(getattr(self.function, "__name__", "agent"))
        self.signature = Signature.of(self.function, "environment.agent")
        if not self.signature.takes("base_url"):
            raise ConfigError(
                f"environment.agent: {spec.agent} has no parameter base_url, the address of the policy"
            )
        try:
            importlib.import_module("trimtab.rollout.recorder")  # needs uvicorn and starlette
        except ImportError as error:
            raise ConfigError(
                f"environment.agent needs {error.name}: pip install 'trimtab[agents]'"
            ) from None
        self._recorder: Recorder | None = None
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
        """``n`` episodes of each prompt; as ``Environments``, but that agents may edit their context."""
        from trimtab.rollout.recorder import Recorder

        if self._recorder is None or self._recorder.engine is not engine:
            self._recorder = Recorder(engine, self.renderer, self.positions)
        self._recorder.sampling = sampling
        return self._loop.run_until_complete(self._play(self._recorder, prompts, n, key))

    async def _play(
        self, recorder: Recorder, prompts: Sequence[Group], n: int, key: tuple[int, ...]
    ) -> list[Group]:
        places = asyncio.Semaphore(self.spec.concurrency)

        async def one(group: Group, own: tuple[int, ...]) -> Episode:
            async with places:
                return await self._episode(recorder, group, own)

        works = [one(g, (*key, p, i)) for p, g in enumerate(prompts) for i in range(n)]
        played = await asyncio.gather(*works)
        return [episode_group(g, played[p * n : (p + 1) * n]) for p, g in enumerate(prompts)]

    async def _episode(self, recorder: Recorder, group: Group, key: tuple[int, ...]) -> Episode:
        """One episode with its scores."""
        spec = self.spec
        session = recorder.open(key, spec.max_turns, spec.max_tokens)
        row = {k: v for k, v in group.extra.items() if k != "messages"}
        prompt = group.extra.get("messages") or group.text
        arguments = {**row, **spec.options, "prompt": prompt, "base_url": session.base_url}
        scores: dict[str, Score] = {}
        deadline = asyncio.timeout(spec.max_seconds)
        try:
            async with deadline:
                scores = self._scores(await self._run(arguments))
            if not session.turns:
                raise RuntimeError("it did not ask the policy for anything")
        except Exception as error:  # noqa: BLE001  an agent may raise anything; it becomes a status
            late = isinstance(error, TimeoutError) and deadline.expired()
            self._fail(session, error, late)
            status = (
                "timeout" if late else "truncated" if session.status == "truncated" else "error"
            )
            scores = {self.name: Score(None, status, session.detail)}
        finally:
            recorder.close(session)
        episode = session.episode()
        episode.scores = scores
        return episode

    async def _run(self, arguments: Row) -> Any:
        accepted = {k: v for k, v in arguments.items() if self.signature.takes(k)}
        if inspect.iscoroutinefunction(self.function):
            return await self.function(**accepted)
        return await functions.in_thread(self.function, accepted)

    def _fail(self, session: Session, error: Exception, late: bool) -> None:
        if late:
            session.status, session.detail = "timeout", f"over {self.spec.max_seconds:g} s"
        elif session.status != "truncated":
            session.status = "failed"
            session.detail = f"{self.name} raised {type(error).__name__}: {error}"

    def _scores(self, returned: Any) -> dict[str, Score]:
        """What the agent returned, as scores by name.

        Raises:
            ValueError: it is no number.
        """
        if returned is None:
            return {}
        values = cast(
            "Mapping[str, Any]",
            returned if isinstance(returned, Mapping) else {self.name: returned},
        )
        for name, value in values.items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"the reward {name!r} is {value!r:.80}, not a number")
        return {name.replace("/", "."): Score(float(value)) for name, value in values.items()}
