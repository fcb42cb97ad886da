"""What samples completions: the protocol of rollout engines."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from trimtab.errors import UserError
from trimtab.sample.sampler import Progress, Request, Sampled, SamplingConfig
from trimtab.types import Floats, Ints


class EngineError(UserError):
    """An engine cannot serve: it cannot be reached, refuses, or has other weights than it says."""


@dataclass(frozen=True, slots=True)
class Health:
    """State of an engine."""

    alive: bool
    version: int | None
    """Weight version of the next request; None before the first update."""
    running: int = 0
    """Completions that are being sampled."""


class Weights(Protocol):
    """The policy's weights, as an engine that has its own copy needs them."""

    @property
    def trains_adapter(self) -> bool:
        """Whether only an adapter is trained, so that the adapter alone can be sent."""
        ...

    @property
    def exact(self) -> bool:
        """Whether the trainer computes in float32."""
        ...

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor under its name in transformers, one at a time, adapters merged.

        The output head is always among them by name, also where it is the input embedding.
        """
        ...

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter in peft's format."""
        ...

    def logps(self, sequences: Sequence[tuple[Ints, Ints]], temperature: float) -> list[Floats]:
        """The trainer's logprobs [T] of each (prompt ids [P], completion ids [T])."""
        ...


class Engine(Protocol):
    """Samples completions with some version of the policy's weights.

    ``generate`` may be awaited from any event loop; requests that are awaited together are sampled
    together.
    """

    @property
    def versioned(self) -> bool:
        """Whether ``Sampled.versions`` is exact where weights change during a completion."""
        ...

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a completion, besides those of the sampling settings."""
        ...

    async def generate(
        self, request: Request, sampling: SamplingConfig, on_progress: Progress | None = None
    ) -> list[Sampled]:
        """``request.n`` completions of one prompt.

        Args:
            request: Its key seeds the random stream of each completion.
            sampling: How tokens are drawn.
            on_progress: Called with (finished, requested) completions, summed over the requests that
                are sampled together and have the same function here.

        Raises:
            EngineError: the request failed; others may succeed.
            ModelError: the prompt does not fit the model.
        """
        ...

    async def update(self, version: int, weights: Weights) -> None:
        """Sample with ``weights`` from now on.

        Args:
            version: Number of optimiser steps of the weights.
            weights: Where to take them from; an engine that samples the live model ignores it.

        Raises:
            EngineError: the engine does not have these weights afterwards.
        """
        ...

    async def health(self) -> Health:
        """Whether the engine answers, and with which weights."""
        ...

    def close(self) -> None:
        """Stop what the engine has started."""
        ...


T = TypeVar("T")


def _wait(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` in this thread.

    Not by ``asyncio.run``: its handler would hold a Ctrl-C back until sampling ends.
    """
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.close()


def generate(
    engine: Engine,
    requests: Sequence[Request],
    sampling: SamplingConfig,
    on_progress: Progress | None = None,
) -> list[list[Sampled]]:
    """Sample all ``requests`` together and wait; completions in order of the requests.

    Raises:
        EngineError: a request failed.
        ModelError: a prompt does not fit the model.
    """

    async def every() -> list[list[Sampled]]:
        return await asyncio.gather(*(engine.generate(r, sampling, on_progress) for r in requests))

    return _wait(every())


def update(engine: Engine, version: int, weights: Weights) -> None:
    """Give ``engine`` other weights and wait; raises as ``Engine.update``."""
    _wait(engine.update(version, weights))
