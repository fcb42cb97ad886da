"""Layers of transformers' models, computing the same with less.

Of the last layer's states only some are read: those before trained tokens, or a completion's last
one. Every token's keys and values are needed there; what comes after attention is needed at the rows
that are read, and is computed for these alone, forward and backward.

RMS norm gets a backward of its own: autograd keeps two more tensors for it and goes over each several
times, which costs a small model as much as its attention.

Both come as classes put over transformers' own, so that weights, names, copies and adapters stay.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LAYERS = frozenset({"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"})  # fmt: skip
"""Those that are x + attention(norm(x)), then x + unit(norm(x))."""
NORMS = frozenset({"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"})
"""Those that are weight * x / sqrt(mean(x^2) + eps)."""


class _RMSNorm(torch.autograd.Function):
    """weight * x / sqrt(mean(x^2) + eps) over the last of any axes (arXiv 1910.07467)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        over = size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        unit = x * over
        ctx.save_for_backward(unit, over, weight)
        return unit * weight

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch's decorator renames ctx
        ctx: Any, *grad_outputs: Any
    ) -> Any:
        unit, over, weight = ctx.saved_tensors
        (g,) = grad_outputs
        width = unit.shape[-1]
        along = (g * unit).view(-1, width)
        d_weight = along.sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, d_weight, None
        # With u = x / size and h = weight g: dx = (h - u mean(u h)) / size.
        mean = (along @ weight).div_(width).view(over.shape)
        return (g * weight).addcmul_(unit, mean, value=-1).mul_(over), d_weight, None


class _Written:
    """Marks a norm that goes by ``_RMSNorm``."""


@lru_cache
def _written(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(self: Any, hidden_states: Tensor) -> Any:
        if hidden_states.dtype == self.weight.dtype == torch.float32:
            return _RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)
        return kind.forward(self, hidden_states)

    return type(kind.__name__, (_Written, kind), {"forward": forward})


class _Reading:
    """Marks a layer that takes ``read``."""


@lru_cache
def _reading(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(
        self: Any, hidden_states: Tensor, *, read: Tensor | None = None, **kwargs: Any
    ) -> Any:
        if read is None:
            return kind.forward(self, hidden_states, **kwargs)

        def at_rows(_: nn.Module, given: tuple[Tensor]) -> Tensor:
            return given[0].index_select(-2, read)

        # What attention gives is cut before its output projection, adapters and all.
        hook = self.self_attn.o_proj.register_forward_pre_hook(at_rows)
        try:
            added, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        finally:
            hook.remove()
        x = hidden_states.index_select(-2, read) + added
        return x + self.mlp(self.post_attention_layernorm(x))

    # The name stays, since wrappers of layers (sharding, checkpointing) go by it.
    return type(kind.__name__, (_Reading, kind), {"forward": forward})


def _theirs(module: nn.Module, names: frozenset[str]) -> bool:
    kind = type(module)
    return kind.__name__ in names and kind.__module__.startswith("transformers.")


def reads_rows(backbone: nn.Module) -> bool:
    """Whether the backbone's forward takes ``read``, rows [K] of the last layer that are wanted.

    Where its family is known, its norms and last layer are given their classes; they are copied with
    the model, and without ``read`` give what they gave before.
    """
    layers: Any = getattr(backbone, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return False
    last = layers[-1]
    if isinstance(last, _Reading):
        return True
    if not _theirs(last, LAYERS):
        return False
    for module in backbone.modules():
        if _theirs(module, NORMS):
            module.__class__ = _written(type(module))
    last.__class__ = _reading(type(last))
    return True
