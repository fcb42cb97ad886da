"""vLLM's side of ``rollout.sync: gloo``: weights by broadcast over TCP, on any device.

vLLM finds ``register`` by the entry point group "vllm.general_plugins". Servers that we start get a
copy of this file, so it imports torch and vLLM only.
"""

# vLLM has an environment of its own.
# pyright: reportMissingImports=false, reportUntypedBaseClass=false, reportPrivateImportUsage=false

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

BACKEND = "gloo"


def local_address(host: str, port: int) -> str:
    """This machine's address on the network of ``host``."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))  # sends nothing
        return str(probe.getsockname()[0])


def join(store: Any, address: str, rank: int, world: int, seconds: float) -> Any:
    """The group of trainer (rank 0) and servers.

    Args:
        store: Where the members find each other.
        address: This process's own address.
        seconds: After which a broadcast that does not move fails.
    """
    options = dist.ProcessGroupGloo._Options()  # pyright: ignore
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]  # pyright: ignore
    options._timeout = timedelta(seconds=seconds)  # pyright: ignore
    return dist.ProcessGroupGloo(store, rank, world, options)


def broadcast(group: Any, tensor: torch.Tensor) -> None:
    """Send (rank 0) or receive one tensor in place."""
    options = dist.BroadcastOptions()
    options.rootRank, options.rootTensor = 0, 0
    group.broadcast([tensor], options).wait()


def engine_class() -> Any:
    """The transfer engine; defined here, since its base class is vLLM's."""
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )

    @dataclass
    class GlooInit(WeightTransferInitInfo):
        master_address: str
        master_port: int
        rank_offset: int
        world_size: int
        group: str
        seconds: float

    @dataclass
    class GlooUpdate(WeightTransferUpdateInfo):
        names: list[str]
        dtype_names: list[str]
        shapes: list[list[int]]

    class GlooTransferEngine(WeightTransferEngine):
        """Receives every tensor by its name in a checkpoint and loads it."""

        init_info_cls = GlooInit
        update_info_cls = GlooUpdate
        group: Any = None

        def init_transfer_engine(self, init_info: Any) -> None:
            parallel = self.parallel_config
            rank = parallel.data_parallel_index * parallel.world_size + parallel.rank
            wait = timedelta(seconds=init_info.seconds)
            host, port = init_info.master_address, init_info.master_port
            store = dist.TCPStore(host, port, is_master=False, timeout=wait)
            self.group = join(
                dist.PrefixStore(init_info.group, store),
                local_address(host, port),
                rank + init_info.rank_offset,
                init_info.world_size,
                init_info.seconds,
            )

        def start_weight_update(self) -> None:
            from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

            initialize_layerwise_reload(self.model)

        def update_weights(self, update_info: dict[str, Any]) -> None:
            with contextlib.ExitStack() as received:
                # vLLM ends a failed update without finishing it: layers that wait for the rest of
                # their weights would take the next update's for it.
                received.callback(self.finish_weight_update)
                # The base class waits for the accelerator, which a CPU does not have.
                self.receive_weights(self.parse_update_info(update_info))
                received.pop_all()

        def receive_weights(self, update_info: Any) -> None:
            for name, dtype, shape in zip(
                update_info.names, update_info.dtype_names, update_info.shapes, strict=True
            ):
                tensor = torch.empty(shape, dtype=getattr(torch, dtype))
                broadcast(self.group, tensor)
                self.model.load_weights([(name, tensor.to(self.device))])

        def finish_weight_update(self) -> None:
            from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

            finalize_layerwise_reload(self.model, self.model_config)

        def shutdown(self) -> None:
            self.group = None

    return GlooTransferEngine


def register() -> None:
    """Called by vLLM in each of its processes."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:  # pyright: ignore
        WeightTransferEngineFactory.register_engine(BACKEND, engine_class())
