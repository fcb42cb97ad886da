"""A sharded model as one that is not, to save it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from trimtab import ranks
from trimtab.models.load import base_of
from trimtab.models.model_spec import ModelSpec
from trimtab.models.shard import full_tensors, is_sharded


@torch.no_grad()
def whole_model(network: Any, spec: ModelSpec) -> nn.Module | None:
    """The model of ``network`` with all of its weights, on rank 0; None on the others. Every rank calls it.

    A sharded model is loaded again on the CPU, and the trained weights are put into it: it can then be
    merged and saved as any other.

    Args:
        network: An ``LM``, ``Scorer`` or ``StepScorer``.
        spec: What it was loaded from.
    """
    model: nn.Module = network.model
    if not is_sharded(model):
        return model if ranks.current().is_main else None
    trained = full_tensors((n, p) for n, p in model.named_parameters() if p.requires_grad)
    if not ranks.current().is_main:
        return None
    loaded = type(network).load(spec.model_copy(update={"device": "cpu"})).model
    parameters = dict(loaded.named_parameters())
    for name, tensor in trained.items():
        parameters[name].copy_(tensor)
    # The pad token, and the statistics of a reward model.
    base_of(loaded).config = base_of(model).config
    return loaded
