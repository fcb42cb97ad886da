"""Weights by broadcast: vLLM's weight transfer over gloo or NCCL."""

# torch does not export its stores by name.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Literal

import torch.distributed as dist
from torch import Tensor

from trimtab.errors import ConfigError
from trimtab.rollout.engine import Weights
from trimtab.rollout.engines.server_process import free_port
from trimtab.rollout.engines.vllm import ServerError, VLLMServer
from trimtab.rollout.sync import Failures, on_each
from trimtab.rollout.vllm_plugin import broadcast, join
from trimtab.types import Row

log = logging.getLogger(__name__)
Named = list[tuple[str, Tensor]]
SECONDS = 120.0
"""After which a rendezvous or a broadcast that does not move fails."""


def described(tensors: Named) -> Row:
    """What receivers must know of the tensors before they come."""
    return {
        "names": [name for name, _ in tensors],
        "dtype_names": [str(t.dtype).removeprefix("torch.") for _, t in tensors],
        "shapes": [list(t.shape) for _, t in tensors],
    }


def _in_thread(work: Callable[[], None]) -> asyncio.Future[None]:
    """The result of ``work``, in a thread that does not keep the program from ending."""
    result: concurrent.futures.Future[None] = concurrent.futures.Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:  # noqa: BLE001 (whoever awaits the result raises it)
            # A new error: the frames of the old one would hold the group, and so its connections.
            result.set_exception(RuntimeError(f"{type(error).__name__}: {error}"))

    threading.Thread(target=run, name="trimtab-weights", daemon=True).start()
    return asyncio.wrap_future(result)


class GlooLink:
    """One group of the trainer and some servers; a change of members needs a new one."""

    def __init__(self, host: str, world: int) -> None:
        self.host, self.world = host, world
        self.name = secrets.token_hex(8)
        self.store = dist.TCPStore(
            host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=SECONDS)
        )
        self.group: Any = None

    def init_info(self, rank_offset: int) -> Row:
        """What a server needs to join as ranks from ``rank_offset`` on."""
        return {
            "master_address": self.host,
            "master_port": self.store.port,
            "rank_offset": rank_offset,
            "world_size": self.world,
            "group": self.name,
            "seconds": SECONDS,
        }

    def open(self) -> None:
        """Join; waits for all servers."""
        store = dist.PrefixStore(self.name, self.store)
        self.group = join(store, self.host, 0, self.world, SECONDS)

    def send(self, tensors: Named) -> None:
        """Broadcast every tensor."""
        for _, tensor in tensors:
            broadcast(self.group, tensor.detach().cpu().contiguous())

    def close(self) -> None:
        """Drop the connections: receivers that still wait then fail."""
        self.group = None


class NCCLLink:
    """The same over NCCL, by vLLM's own sender; needs vLLM in the trainer's environment."""

    def __init__(self, host: str, world: int) -> None:
        try:
            from vllm.distributed.weight_transfer import (  # pyright: ignore[reportMissingImports]
                nccl_common,
                packed_tensor,
            )
        except ImportError:
            raise ConfigError(
                "rollout.sync: nccl needs vLLM in the trainer's environment too; install it there, or set "
                "rollout.sync: folder or gloo"
            ) from None
        self._common: Any = nccl_common
        self._packed: Any = packed_tensor
        self._info = nccl_common.NCCLWeightTransferInitInfo(
            master_address=host,
            master_port=free_port(),
            rank_offset=1,
            world_size=world,
            packed=True,
        )
        self.group: Any = None

    def init_info(self, rank_offset: int) -> Row:
        """What a server needs to join as ranks from ``rank_offset`` on."""
        return {**self._common.worker_init_payload(self._info), "rank_offset": rank_offset}

    def open(self) -> None:
        """Join; waits for all servers."""
        self.group = self._common.trainer_init(self._info)

    def send(self, tensors: Named) -> None:
        """Broadcast every tensor, several in one buffer."""

        def pairs() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in tensors:
                yield name, tensor.detach().contiguous()

        self._packed.packed_nccl_broadcast_producer(
            iterator=pairs(),
            group=self.group,
            src=0,
            post_iter_func=lambda item: item[1],
            buffer_size_bytes=self._info.packed_buffer_size_bytes,
            num_buffers=self._info.packed_num_buffers,
        )

    def close(self) -> None:
        """Leave the group."""
        group, self.group = self.group, None
        if group is not None:
            group.destroy()


class GroupSync:
    """Broadcasts the whole model to all servers at once.

    Any failure or change of servers ends the group: the survivors leave it, a new one is formed, and
    the weights are sent again.

    Args:
        backend: What the servers were started with (``--weight-transfer-config``).
        host: The trainer's address as the servers reach it.
    """

    pauses = True
    resends = False

    def __init__(self, backend: Literal["gloo", "nccl"], host: str) -> None:
        self.backend, self.host = backend, host
        self.link: GlooLink | NCCLLink | None = None
        self.members: tuple[str, ...] = ()
        """URLs of the servers of ``link``."""
        self.recoveries = 0
        """How often a group was formed again after a failure."""

    def prepare(self, version: int, weights: Weights) -> Named:
        """The tensors; those without an adapter are the live ones, which nothing changes meanwhile."""
        return list(weights.tensors())

    async def send(self, servers: Sequence[VLLMServer], version: int, payload: Named) -> Failures:
        """Broadcast, with a new group over the living where one fails."""
        failures: Failures = {}
        living = list(servers)
        while living:
            failed = await self._attempt(living, payload)
            if not failed:
                return failures
            self.recoveries += 1
            await self._abandon(living)
            gone = await on_each(living, lambda s: s.call("GET", "/health", timeout=5.0))
            # A server that answers but cannot take part would fail each attempt.
            refused = {} if gone else failed
            for error in (gone | refused).values():
                log.warning("rollout: weight transfer of version %d: %s", version, error)
            failures |= gone | refused
            living = [s for s in living if s.url not in failures]
        return failures

    async def _attempt(self, servers: Sequence[VLLMServer], tensors: Named) -> Failures:
        """One transfer; who reported an error. A sender that failed counts as everybody's."""
        if self.link is None or self.members != tuple(s.url for s in servers):
            if self.link is not None:
                await self._abandon(servers)
            failed = await self._form(servers)
            if failed:
                return failed
        failed = await on_each(servers, lambda s: s.post("/start_weight_update"))
        if failed:
            return failed
        assert self.link is not None
        body = {"update_info": described(tensors)}
        return await self._together(
            servers,
            lambda s: s.post("/update_weights", body, timeout=s.timeout),
            lambda link=self.link: link.send(tensors),
        ) or await on_each(servers, lambda s: s.post("/finish_weight_update", timeout=s.timeout))

    async def _form(self, servers: Sequence[VLLMServer]) -> Failures:
        """A new group of the trainer and ``servers``."""
        offsets: dict[str, int] = {}
        world = 1
        for server in servers:
            try:
                reply = await server.call("GET", "/get_world_size")
            except ServerError as error:
                return {server.url: error}
            offsets[server.url] = world
            world += int(reply["world_size"])
        link = GlooLink(self.host, world) if self.backend == "gloo" else NCCLLink(self.host, world)
        self.link, self.members = link, tuple(s.url for s in servers)

        async def init(server: VLLMServer) -> None:
            info = link.init_info(offsets[server.url])
            try:
                await server.post(
                    "/init_weight_transfer_engine", {"init_info": info}, timeout=SECONDS
                )
            except ServerError as error:
                raise ServerError(
                    f"{error}; the server needs VLLM_SERVER_DEV_MODE=1 and --weight-transfer-config "
                    f'\'{{"backend": "{self.backend}"}}\', and must reach {self.host} (rollout.host)'
                ) from None

        return await self._together(servers, init, link.open)

    async def _together(self, servers: Sequence[VLLMServer], calls: Any, own: Any) -> Failures:
        """HTTP calls and our own part at once. Our part runs in a thread that may be abandoned."""
        own_send = _in_thread(own)
        theirs = asyncio.ensure_future(on_each(servers, calls))
        done, _ = await asyncio.wait({own_send, theirs}, return_when=asyncio.FIRST_COMPLETED)
        if theirs in done and theirs.result():
            own_send.add_done_callback(lambda f: f.cancelled() or f.exception())
            return theirs.result()
        try:
            await asyncio.wait_for(asyncio.shield(own_send), SECONDS)
        except (RuntimeError, TimeoutError, dist.DistError) as error:
            if self.link is not None:
                self.link.close()
            try:
                reports = await asyncio.wait_for(theirs, SECONDS)
            except TimeoutError:
                reports = {}
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            return reports or {s.url: ServerError(f"{s.url}: {text}") for s in servers}
        return await theirs

    async def _abandon(self, servers: Sequence[VLLMServer]) -> None:
        """End the group and let the survivors leave it, whatever state they are in."""
        if self.link is not None:
            self.link.close()
        self.link, self.members = None, ()
        # Errors do not matter: a server may not have started an update, or be gone.
        await on_each(servers, lambda s: s.post("/finish_weight_update"))
        await on_each(servers, lambda s: s.post("/shutdown_weight_transfer_engine"))

    def model(self, server: VLLMServer) -> str:
        """The served model."""
        assert server.facts is not None
        return server.facts.model

    async def close(self, servers: Sequence[VLLMServer]) -> None:
        """Leave the group."""
        if self.link is not None:
            await self._abandon(servers)
