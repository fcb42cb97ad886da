"""Several vLLM servers as one engine: who serves, who is synced, who is gone."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from trimtab.background import Background
from trimtab.errors import ConfigError
from trimtab.rollout.engine import EngineError, Health, Weights
from trimtab.rollout.engines.member import Member, State, choose, labelled
from trimtab.rollout.engines.server_process import Servers
from trimtab.rollout.engines.vllm import Requirements, ServerError, VLLMServer
from trimtab.rollout.sync import Failures, Transport, on_each
from trimtab.rollout.weight_probe import PROBE, Verified, compare, probe_requests
from trimtab.sample.sampler import Progress, Request, Sampled, SamplingConfig
from trimtab.types import Ints

log = logging.getLogger(__name__)
HEARTBEAT = 5.0
"""Seconds between two looks at a server."""
PATIENCE = 5.0
"""Seconds in which a server must say that it is alive."""
MISSES = 3
"""Heartbeats without a reply after which a server counts as dead."""


class ServerPool:
    """An engine of one or more servers; see ``rollout.engine.Engine``.

    Args:
        servers: Of equal models.
        needs: What is checked of every server.
        transport: How weights are sent.
        stop_ids: Ids that end a completion.
        probe_prompts: Prompts of the run, for the probe after each update.
        processes: The servers, where we started them: they are started again if they end, and
            stopped by ``close``.

    Raises:
        ConfigError: a server does not fit; nothing is left running.
    """

    def __init__(
        self,
        servers: Sequence[VLLMServer],
        needs: Requirements,
        transport: Transport,
        stop_ids: tuple[int, ...],
        probe_prompts: Sequence[Ints],
        processes: Servers | None = None,
    ) -> None:
        self.members = [Member(s) for s in servers]
        self.needs, self.transport = needs, transport
        self.stop_ids, self.probe_prompts, self.processes = stop_ids, probe_prompts, processes
        self.timeout = max(s.timeout for s in servers)
        self.version: int | None = None
        """Of the last update."""
        self.gap = 0.0
        """Largest probe difference of the last update, nats per token."""
        self.seconds = 0.0
        """Duration of the last update."""
        self._tallies: dict[int, list[int]] = {}
        self._exact = True
        self._payload: Any = None
        self._verified: Verified | None = None
        self._background = Background("trimtab-engines")
        with ExitStack() as started:
            started.callback(self._background.close)
            self._background.run(self._start())
            started.pop_all()

    async def _start(self) -> None:
        self._changed = asyncio.Condition()
        self._updating = asyncio.Lock()
        for member in self.members:
            await member.server.check(self.needs)
        self._heart = asyncio.ensure_future(self._beat())

    @property
    def versioned(self) -> bool:
        """Whether every server says the weight version of every token."""
        facts = [m.server.facts for m in self.members]
        return not self.transport.pauses or all(f is not None and f.spans for f in facts)

    async def health(self) -> Health:
        """Alive while a server serves or may serve again."""
        return Health(
            alive=any(m.state != "dead" for m in self.members),
            version=self.version,
            running=sum(m.server.running for m in self.members),
        )

    # Completions

    async def generate(
        self, request: Request, sampling: SamplingConfig, on_progress: Progress | None = None
    ) -> list[Sampled]:
        """See ``Engine.generate``. A request that fails is sent once more, elsewhere if possible."""
        if on_progress is None:
            return await self._background.call(self._generate(request, sampling))
        tally = self._tallies.setdefault(id(on_progress), [0, 0])
        tally[1] += request.n
        sampled = await self._background.call(self._generate(request, sampling))
        tally[0] += request.n
        on_progress(*tally)
        if tally[0] == tally[1]:
            self._tallies.pop(id(on_progress), None)
        return sampled

    async def _generate(self, request: Request, sampling: SamplingConfig) -> list[Sampled]:
        last: Member | None = None
        reason = ""
        for _ in range(2):
            member = await self._pick(request.key, last)
            model, version = self.transport.model(member.server), member.version
            try:
                call = member.server.generate(request, sampling, self.stop_ids, model)
                sampled = await member.while_alive(call)
                return [labelled(s, version, self.transport.pauses, member) for s in sampled]
            except ServerError as error:
                if not error.retry:
                    raise
                last, reason = member, str(error)
                await self._suspect(member)
        raise EngineError(f"a prompt failed twice: {reason}")

    async def _pick(self, key: tuple[int, ...], avoid: Member | None) -> Member:
        """A serving server, another than ``avoid`` if there is one; waits for one if need be."""

        def living() -> list[Member]:
            serving = [m for m in self.members if m.state == "serving"]
            return [m for m in serving if m is not avoid] or serving

        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(living), self.timeout)
            except TimeoutError:
                states = ", ".join(f"{m.url} is {m.state}" for m in self.members)
                raise EngineError(
                    f"no server can serve since {self.timeout:.0f} s: {states}; look at their logs"
                ) from None
            return choose(key, living())

    async def _suspect(self, member: Member) -> None:
        """Look at once at a server that failed a request."""
        if member.state == "serving" and not await self._answers(member):
            await self._set(member, "dead")

    # Membership

    async def _set(self, member: Member, state: State) -> None:
        if member.state != state and "dead" in (state, member.state):
            log.warning("rollout: server %s was %s, is now %s", member.url, member.state, state)
        member.state = state
        if state == "dead":
            member.give_up()
        async with self._changed:
            self._changed.notify_all()

    async def _answers(self, member: Member) -> bool:
        try:
            await member.server.call("GET", "/health", timeout=PATIENCE)
        except ServerError:
            return False
        return True

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT)
            if self.processes is not None:
                await asyncio.to_thread(self.processes.watch)
            looks = await asyncio.gather(
                *(self._look(m) for m in self.members), return_exceptions=True
            )
            for result in looks:
                if isinstance(result, BaseException):
                    log.warning("rollout: a heartbeat failed: %r", result)

    async def _look(self, member: Member) -> None:
        """One heartbeat of one server."""
        alive = await self._answers(member)
        member.misses = 0 if alive else member.misses + 1
        if member.misses >= MISSES and member.state in ("serving", "new", "synced"):
            await self._set(member, "dead")
        if not alive or self._updating.locked():
            return
        if member.state == "serving" and self.transport.pauses:
            try:
                label = await member.server.weight_version()
            except ServerError:
                return
            if label is not None and label != str(member.version):
                log.warning(
                    "rollout: server %s was restarted: its weights are %r", member.url, label
                )
                await self._set(member, "new")
        if member.state in ("dead", "new") and self.transport.resends and self._verified:
            async with self._updating:
                await self._join(member)

    async def _join(self, member: Member) -> None:
        """Sync a restarted server with the weights of the last update, and verify them."""
        assert self.version is not None and self._verified is not None
        try:
            await member.server.check(self.needs)
            await self._set(member, "new")
            failures = await self._send([member], self.version)
            if failures:
                raise failures[member.url]
            logps = await member.server.prompt_logps(
                self._verified.sequences, self.transport.model(member.server)
            )
            compare(member.url, self.version, logps, self._verified.logps, self._exact)
            await self._serve(member)
        except (EngineError, ConfigError) as error:
            log.warning("rollout: server %s cannot serve yet: %s", member.url, error)
            await self._set(member, "dead")

    # Weights

    async def update(self, version: int, weights: Weights) -> None:
        """Give ``weights`` to every living server and prove it; see ``Engine.update``.

        Raises:
            EngineError: no server has the weights, or one has others than it was sent.
        """
        started = time.monotonic()
        self._exact = weights.exact
        payload = self.transport.prepare(version, weights)
        members = await self._background.call(self._distribute(version, payload))
        facts = [m.server.facts for m in members]
        room = min(f.max_length for f in facts if f is not None)
        requests = probe_requests(self.probe_prompts, version, room)
        self.gap = 0.0
        for member in members:
            sampled = await self._background.call(self._probe(member, requests))
            if sampled is None:
                continue
            sequences = [(r.prompt, s.ids) for r, s in zip(requests, sampled, strict=True)]
            expected = weights.logps(sequences, PROBE.temperature)
            gap = compare(member.url, version, [s.logp for s in sampled], expected, weights.exact)
            self.gap = max(self.gap, gap)
            self._verified = Verified(sequences, expected)
            await self._background.call(self._serve(member))
        if all(m.state != "serving" for m in members):
            raise EngineError(f"every server failed in the update to version {version}")
        self.seconds = time.monotonic() - started

    async def _distribute(self, version: int, payload: Any) -> list[Member]:
        """Pause, send, label; the members that have the weights."""
        async with self._updating:
            self.version, self._payload = version, payload
            living = [m for m in self.members if m.state != "dead" or await self._returned(m)]
            if not living:
                raise EngineError(
                    "no server is left: "
                    + ", ".join(m.url for m in self.members)
                    + "; look at their "
                    "logs, start them again, and run the same command to resume"
                )
            failures = await self._send(living, version)
            for member in living:
                if member.url in failures:
                    log.warning("rollout: %s", failures[member.url])
                    await self._set(member, "dead")
            synced = [m for m in living if m.state != "dead"]
            if not synced:
                first = next(iter(failures.values()))
                raise EngineError(f"no server took the weights of version {version}: {first}")
            return synced

    async def _returned(self, member: Member) -> bool:
        """Whether a dead server answers again, and still fits."""
        try:
            await member.server.check(self.needs)
        except (EngineError, ConfigError):
            return False
        await self._set(member, "new")
        return True

    async def _send(self, members: Sequence[Member], version: int) -> Failures:
        by_url = {m.url: m for m in members}
        servers = [m.server for m in members]
        failures: Failures = {}

        async def every(work: Callable[[VLLMServer], Any]) -> None:
            failures.update(await on_each([s for s in servers if s.url not in failures], work))

        if self.transport.pauses:
            await every(lambda s: s.post("/pause", mode="keep"))
            for url in by_url.keys() - failures.keys():
                await self._set(by_url[url], "paused")
        living = [s for s in servers if s.url not in failures]
        failures.update(await self.transport.send(living, version, self._payload))
        if self.transport.pauses:
            await every(lambda s: s.post("/reset_prefix_cache", reset_running_requests="true"))
            await every(lambda s: s.post("/update_weight_version", {"new_version": str(version)}))
            # The probe needs running servers; others get no requests before they are served.
            await every(lambda s: s.post("/resume"))
        for url in by_url.keys() - failures.keys():
            by_url[url].version = version
            await self._set(by_url[url], "synced")
        return failures

    async def _probe(self, member: Member, requests: Sequence[Request]) -> list[Sampled] | None:
        """The probe's completions; None if the server is gone."""
        model = self.transport.model(member.server)
        try:
            lists = await asyncio.gather(
                *(member.server.generate(r, PROBE, self.stop_ids, model) for r in requests)
            )
        except ServerError as error:
            log.warning("rollout: %s", error)
            await self._set(member, "dead")
            return None
        return [samples[0] for samples in lists]

    async def _serve(self, member: Member) -> None:
        member.misses = 0
        await self._set(member, "serving")

    def close(self) -> None:
        """Release what servers keep for us, and close the connections."""

        async def end() -> None:
            self._heart.cancel()
            living = [m.server for m in self.members if m.state != "dead"]
            try:
                await asyncio.wait_for(self.transport.close(living), 30.0)
            except (TimeoutError, EngineError) as error:
                log.warning("rollout: %s", error)
            for member in self.members:
                await member.server.close()

        with ExitStack() as stack:
            if self.processes is not None:
                stack.callback(self.processes.stop)
            stack.callback(self._background.close)
            self._background.run(end())
