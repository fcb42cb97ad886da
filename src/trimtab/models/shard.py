"""A model over several ranks: gradients summed by hand, or weights sharded by FSDP2."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from trimtab import ranks
from trimtab.data.pack import build
from trimtab.errors import ModelError
from trimtab.models.load import backbone_of
from trimtab.models.packed import PackedLM, PackedScorer, PackedStepScorer
from trimtab.types import Completion, Group

BUCKET = 2**26
"""Numbers that are summed at once: 256 MB in float32."""


def shard(root: PackedLM | PackedScorer | PackedStepScorer) -> None:
    """Shard a model over the current ranks, in place; with one process nothing changes.

    Raises:
        ModelError: the model's decoder layers are not found.
    """
    here = ranks.current()
    if here.world > 1:
        shard_over(root, here.group)


def shard_over(root: PackedLM | PackedScorer | PackedStepScorer, group: Any) -> None:
    """Shard a model over a process group, in place.

    Each decoder layer is gathered for its forward and backward alone. Gradients are summed, not
    averaged: the counts that divide them are those of all ranks already.

    Raises:
        ModelError: the model's decoder layers are not found.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    device = next(root.parameters()).device.type
    mesh = DeviceMesh.from_group(group, device)
    for layer in _decoder_layers(root.model):
        fully_shard(layer, mesh=mesh)
    fully_shard(root, mesh=mesh)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # gloo has no reduction that also scales.
            module.set_force_sum_reduction_for_comms(True)
    # The first module that runs becomes the root of the hooks: it must not be a layer that samples.
    token = np.zeros(1, np.int64)
    probe = build([Group("probe", token, [Completion(token, np.ones(1, np.bool_))])])
    with torch.no_grad():
        root.outputs(probe.to(device))
    _reshard(root)


def reshard(root: nn.Module) -> None:
    """Free gathered weights. The root keeps its own after a forward without a backward."""
    if ranks.current().world > 1:
        _reshard(root)


def _reshard(root: nn.Module) -> None:
    from torch.distributed.fsdp import FSDPModule

    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _decoder_layers(model: nn.Module) -> list[nn.Module]:
    lists = [m for m in backbone_of(model).modules() if isinstance(m, nn.ModuleList)]
    layers = list(max(lists, key=len, default=()))
    if not layers:
        raise ModelError(
            f"model.shard: no list of decoder layers in {type(model).__name__}; use model.shard: none"
        )
    return layers


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights of a model are sharded over ranks."""
    return any(is_shard(p) for p in model.parameters())


def is_shard(tensor: Tensor) -> bool:
    """Whether a tensor is this rank's part of a sharded one."""
    return type(tensor) not in (Tensor, nn.Parameter) and hasattr(tensor, "full_tensor")


@contextlib.contextmanager
def gathered(root: nn.Module) -> Generator[None]:
    """A context, entered by every rank, in which each rank holds the weights of ``root`` in full.

    Inside, ranks may run different numbers of forwards. Without sharding it does nothing.
    """
    if ranks.current().world == 1:
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    modules = [m for m in root.modules() if isinstance(m, FSDPModule)]
    if not modules:
        yield
        return
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.reshard()
            # The root stays gathered between forward and backward, as fully_shard sets it.
            module.set_reshard_after_forward(module is not root, recurse=False)


def full(tensor: Tensor) -> Tensor:
    """A tensor in full, on every rank, which all call this."""
    return cast(Any, tensor).full_tensor() if is_shard(tensor) else tensor


def shard_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """A full tensor, which every rank has, sharded as ``parameter`` of the same shape is."""
    if not is_shard(parameter) or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    target = cast(Any, parameter)
    value = tensor.to(parameter.device)
    return distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)


def full_tensors(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors in full on rank 0, gathered one at a time to its CPU; empty on the other ranks."""
    main = ranks.current().is_main
    tensors: dict[str, Tensor] = {}
    for name, tensor in named:
        value = full(tensor.detach())
        if main:
            tensors[name] = value.cpu() if is_shard(tensor) else value
    return tensors


def sum_gradients(parameters: Sequence[Tensor], here: ranks.Ranks) -> None:
    """Sum the gradients over the ranks, in place and in float32.

    A gradient that a rank lacks counts as zero there. One that every rank lacks stays None, so that the
    optimiser leaves the parameter alone. Sharded parameters are left out: their sums are made in the
    backward.
    """
    bucket: list[Tensor] = []
    size = 0
    for p in parameters:
        if is_shard(p):
            continue
        if bucket and size + p.numel() > BUCKET:
            _sum_bucket(bucket, here)
            bucket, size = [], 0
        bucket.append(p)
        size += p.numel()
    if bucket:
        _sum_bucket(bucket, here)


def _sum_bucket(parameters: Sequence[Tensor], here: ranks.Ranks) -> None:
    device = parameters[0].device
    present = torch.tensor([float(p.grad is not None) for p in parameters], device=device)
    gradients = [
        torch.zeros(p.numel(), device=device) if p.grad is None else p.grad.reshape(-1).float()
        for p in parameters
    ]
    flat = torch.cat([*gradients, present])
    here.sum_tensor(flat)
    *sums, counts = flat.split([*(p.numel() for p in parameters), len(parameters)])
    for p, total, count in zip(parameters, sums, counts.tolist(), strict=True):
        if count:
            p.grad = total.view(p.shape).to(p.dtype)
