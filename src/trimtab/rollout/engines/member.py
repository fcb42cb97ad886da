"""A server of a pool, and what the pool knows of it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from trimtab.rollout.engines.vllm import ServerError, VLLMServer
from trimtab.sample.sampler import Sampled

State = Literal["new", "synced", "serving", "paused", "dead"]


@dataclass(slots=True)
class Member:
    """A server and what the pool knows of it."""

    server: VLLMServer
    state: State = "new"
    """Only ``serving`` gets requests, and only a sync leads there."""
    version: int | None = None
    """Of its weights, once they were synced."""
    misses: int = 0
    calls: set[asyncio.Future[list[Sampled]]] = field(
        default_factory=set["asyncio.Future[list[Sampled]]"]
    )
    """Requests that it is working on."""

    @property
    def url(self) -> str:
        """Address of the server."""
        return self.server.url

    async def while_alive(self, request: Coroutine[Any, Any, list[Sampled]]) -> list[Sampled]:
        """The reply to a request, given up when the server is declared dead: one that hangs keeps its
        connections open, and the limit of a request is far longer than three heartbeats.

        Raises:
            ServerError: as the request does, or the server was declared dead.
        """
        call = asyncio.ensure_future(request)
        self.calls.add(call)
        try:
            await asyncio.wait({call})
        finally:
            self.calls.discard(call)
            call.cancel()
        if call.cancelled():
            raise ServerError(f"{self.url} does not answer any more")
        return call.result()

    def give_up(self) -> None:
        """End the requests that it is working on."""
        for call in self.calls:
            call.cancel()


def choose(key: tuple[int, ...], living: Sequence[Member]) -> Member:
    """The server of a request: hash(key) mod living, so that equal keys find their prefix cached."""
    digest = hashlib.sha256(",".join(map(str, key)).encode()).digest()
    return living[int.from_bytes(digest[:8], "big") % len(living)]


def labelled(sampled: Sampled, version: int | None, by_label: bool, member: Member) -> Sampled:
    """The completion with its weight versions.

    Raises:
        ServerError: the server was restarted and sampled with the weights that it loaded.
    """
    if by_label and sampled.versions:
        if any(v < 0 for _, _, v in sampled.versions):
            raise ServerError(f"{member.url}: was restarted and has not been synced")
    else:
        sampled.versions = ((0, len(sampled.ids), -1 if version is None else version),)
    return sampled
