"""The engine inside the trainer's process: ``sample.sampler`` on the live weights."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Self

from trimtab.data.render import Renderer
from trimtab.models.load import LM, ModelSpec
from trimtab.rollout.engine import Health, Weights
from trimtab.sample.sampler import Progress, Request, Sampled, Sampler, SamplingConfig


@dataclass(slots=True)
class _Job:
    request: Request
    sampling: SamplingConfig
    on_progress: Progress | None
    result: asyncio.Future[list[Sampled]]


class NativeEngine:
    """Samples the model that is trained; requests that are awaited together become one batch.

    The event loop is blocked while a batch is sampled. Use it from one loop at a time.
    """

    versioned = True

    def __init__(self, sampler: Sampler, version: int = 0) -> None:
        self.sampler, self.version = sampler, version
        self._queue: list[_Job] = []

    @classmethod
    def of(cls, lm: LM, renderer: Renderer) -> Self:
        """The engine of a model in memory, with the end tokens of ``renderer``."""
        sampler = Sampler(
            lm.plain_attention(), renderer.tokenizer, stop_ids=renderer.stop_ids, mixed=lm.mixed
        )
        return cls(sampler)

    @classmethod
    def load(cls, spec: ModelSpec, renderer: Renderer) -> Self:
        """The engine of a frozen model."""
        return cls.of(LM.load(spec, train=False), renderer)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a completion."""
        return self.sampler.stop_ids

    async def generate(
        self, request: Request, sampling: SamplingConfig, on_progress: Progress | None = None
    ) -> list[Sampled]:
        """See ``Engine.generate``; a prompt that does not fit the model fails its whole batch."""
        loop = asyncio.get_running_loop()
        job = _Job(request, sampling, on_progress, loop.create_future())
        self._queue.append(job)
        if len(self._queue) == 1:
            # Runs after every coroutine that is ready now has put its request into the queue.
            loop.call_soon(self._sample)
        return await job.result

    def _sample(self) -> None:
        """Sample what is in the queue; one batch per sampling settings."""
        jobs, self._queue = self._queue, []
        while jobs:
            sampling = jobs[0].sampling
            self._sample_batch([j for j in jobs if j.sampling == sampling], sampling)
            jobs = [j for j in jobs if j.sampling != sampling]

    def _sample_batch(self, jobs: list[_Job], sampling: SamplingConfig) -> None:
        watchers = {id(j.on_progress): j.on_progress for j in jobs if j.on_progress is not None}

        def show(done: int, total: int) -> None:
            for watcher in watchers.values():
                watcher(done, total)

        requests = [j.request for j in jobs]
        try:
            results = self.sampler(requests, sampling, show if watchers else None)
        except Exception as error:  # noqa: BLE001 (whoever awaits the result raises it)
            for job in jobs:
                if not job.result.done():
                    job.result.set_exception(error)
            return
        for job, sampled in zip(jobs, results, strict=True):
            for s in sampled:
                s.versions = ((0, len(s.ids), self.version),)
            if not job.result.done():  # its caller may have been cancelled
                job.result.set_result(sampled)

    async def update(self, version: int, weights: Weights | None = None) -> None:
        """Note the version; the weights are the live ones."""
        self.version = version

    async def health(self) -> Health:
        """Always alive."""
        return Health(alive=True, version=self.version, running=len(self._queue))

    def close(self) -> None:
        """Nothing to stop."""
