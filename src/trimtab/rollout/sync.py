"""How weights get into vLLM servers: as files here, as a broadcast in ``rollout.link``."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import save_file
from torch import Tensor

from trimtab.rollout.engine import Weights
from trimtab.rollout.engines.vllm import ServerError, VLLMServer

SHARD_BYTES = 2 << 30
"""Bytes per file of a weight folder."""
Failures = dict[str, ServerError]
"""Servers that did not get the weights, by URL."""


class Transport(Protocol):
    """One way to give weights to servers.

    ``prepare`` runs in the trainer's thread and may read the model; ``send`` runs beside it.
    """

    pauses: bool
    """Whether generation pauses while weights are sent."""
    resends: bool
    """Whether ``send`` works again later, without the trainer: a restarted server is synced at once."""

    def prepare(self, version: int, weights: Weights) -> Any:
        """What ``send`` needs."""
        ...

    async def send(self, servers: Sequence[VLLMServer], version: int, payload: Any) -> Failures:
        """Give the weights to every server."""
        ...

    def model(self, server: VLLMServer) -> str:
        """The name under which ``server`` has the newest weights."""
        ...

    async def close(self, servers: Sequence[VLLMServer]) -> None:
        """Release what the servers keep for this transport."""
        ...


async def on_each(servers: Sequence[VLLMServer], work: Any) -> Failures:
    """Await ``work(server)`` of all servers together; who failed."""
    results = await asyncio.gather(*(work(s) for s in servers), return_exceptions=True)
    failures: Failures = {}
    for server, result in zip(servers, results, strict=True):
        if isinstance(result, ServerError):
            failures[server.url] = result
        elif isinstance(result, BaseException):
            raise result
    return failures


class Names:
    """Names of versions that are never used twice, neither in this process nor by another run."""

    def __init__(self) -> None:
        self._run = secrets.token_hex(4)
        self._used: set[str] = set()

    def new(self, version: int) -> str:
        """The name of this version; another one if it comes again, as after a rollback."""
        name = first = f"policy-{self._run}@{version}"
        again = 0
        while name in self._used:
            again += 1
            name = f"{first}.{again}"
        self._used.add(name)
        return name


class AdapterSync:
    """Adapters as files, each version under a name of its own; running completions keep theirs.

    Args:
        folder: On a disk that the servers read under the same path.
        lag: Versions after which an adapter is unloaded: completions that started with it have ended.
    """

    pauses = False
    resends = True

    def __init__(self, folder: Path, lag: int = 2) -> None:
        self.folder, self.lag = folder, lag
        self._names = Names()
        self.names: list[str] = []
        """Adapters that servers may still have, oldest first."""

    def prepare(self, version: int, weights: Weights) -> Path:
        """Write the adapter; its folder."""
        path = self.folder / self._names.new(version)
        weights.save_adapter(path)
        return path.resolve()

    async def send(self, servers: Sequence[VLLMServer], version: int, payload: Path) -> Failures:
        """Load the adapter on every server, then unload old ones."""
        name = payload.name

        async def load(server: VLLMServer) -> None:
            body = {"lora_name": name, "lora_path": str(payload)}
            try:
                await server.post("/v1/load_lora_adapter", body)
            except ServerError as error:
                if "has already been loaded" not in str(error):
                    raise _explained(error) from None

        failures = await on_each(servers, load)
        if name not in self.names:
            self.names.append(name)
        while len(self.names) > self.lag + 1:
            old = self.names.pop(0)
            living = [s for s in servers if s.url not in failures]
            await on_each(living, lambda s, name=old: _unload(s, name))
            shutil.rmtree(self.folder / old, ignore_errors=True)
        return failures

    def model(self, server: VLLMServer) -> str:
        """The newest adapter."""
        return self.names[-1]

    async def close(self, servers: Sequence[VLLMServer]) -> None:
        """Unload every adapter."""
        for name in self.names:
            await on_each(servers, lambda s, name=name: _unload(s, name))


def _explained(error: ServerError) -> ServerError:
    """The error with the way out, where the server's settings are the cause."""
    text = str(error)
    if "status 404" in text and "Not Found" in text:
        text += (
            "; start the server with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora, or set "
            "rollout.sync: folder"
        )
    elif "status 4" in text or "status 500" in text:
        text += (
            "; the server must read the path (rollout.shared_folder), and --max-lora-rank must be at least "
            "model.lora.r; an adapter that vLLM cannot serve needs rollout.sync: folder"
        )
    return ServerError(text, retry=error.retry)


async def _unload(server: VLLMServer, name: str) -> None:
    try:
        await server.post("/v1/unload_lora_adapter", {"lora_name": name})
    except ServerError as error:
        if "status 404" not in str(error):  # a restarted server does not have it
            raise


class FolderSync:
    """The whole model as safetensors files on a shared disk.

    Args:
        folder: On a disk that the servers read under the same path.
    """

    pauses = True
    resends = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names = Names()
        self.last: Path | None = None

    def prepare(self, version: int, weights: Weights) -> Path:
        """Write the weights; their folder."""
        path = self.folder / self._names.new(version)
        path.mkdir(parents=True)
        write_shards(weights.tensors(), path)
        return path.resolve()

    async def send(self, servers: Sequence[VLLMServer], version: int, payload: Path) -> Failures:
        """Let every server read the files."""
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(payload)}}
        failures = await on_each(
            servers, lambda s: s.post("/collective_rpc", body, timeout=s.timeout)
        )
        if self.last is not None and self.last != payload:
            shutil.rmtree(self.last, ignore_errors=True)
        self.last = payload
        return failures

    def model(self, server: VLLMServer) -> str:
        """The served model."""
        assert server.facts is not None
        return server.facts.model

    async def close(self, servers: Sequence[VLLMServer]) -> None:
        """Delete the last files."""
        if self.last is not None:
            shutil.rmtree(self.last, ignore_errors=True)


def write_shards(tensors: Iterator[tuple[str, Tensor]], folder: Path) -> None:
    """Write tensors as safetensors files of about ``SHARD_BYTES``."""
    shard: dict[str, Tensor] = {}
    size = number = 0

    def flush() -> None:
        nonlocal shard, size, number
        number += 1
        save_file(shard, folder / f"model-{number:05d}.safetensors")
        shard, size = {}, 0

    for name, tensor in tensors:
        # A copy: a tied head shares memory with the embeddings, which the format refuses.
        shard[name] = tensor.detach().cpu().contiguous().clone()
        size += shard[name].numel() * shard[name].element_size()
        if size >= SHARD_BYTES:
            flush()
    if shard:
        flush()
