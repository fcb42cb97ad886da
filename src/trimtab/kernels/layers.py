"""Layers of transformers' models, computing the same with less.

Of the last layer's states only some are read: those before trained tokens, or a completion's last
one. Every token's keys and values are needed there; what comes after attention is needed at the rows
that are read, and is computed for these alone, forward and backward.

RMS norm and rotary positions get a backward of their own: autograd keeps more tensors for them and
goes over each several times, which costs a small model as much as its attention.

All come as classes put over transformers' own, so that weights, names, copies and adapters stay.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trimtab.kernels.tree_attention import Tree, tree_attention

LAYERS = frozenset({"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"})  # fmt: skip
"""Those that are x + attention(norm(x)), then x + unit(norm(x))."""
NORMS = frozenset({"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"})
"""Those that are weight * x / sqrt(mean(x^2) + eps)."""


class RMSNorm(torch.autograd.Function):
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
    """Marks a norm that goes by ``RMSNorm``."""


@lru_cache
def _written(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(self: Any, hidden_states: Tensor) -> Any:
        if hidden_states.dtype == self.weight.dtype == torch.float32:
            return RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)
        return kind.forward(self, hidden_states)

    return type(kind.__name__, (_Written, kind), {"forward": forward})


def turned(x_NHD: Tensor, cos_ND: Tensor, sin_ND: Tensor, back: bool = False) -> Tensor:
    """The two halves of every head, turned by the angles of its position (arXiv 2104.09864)."""
    half = x_NHD.shape[-1] // 2
    one, two = x_NHD.split(half, -1)
    sin = sin_ND[:, :half]
    signed = torch.cat([sin, -sin] if back else [-sin, sin], -1)
    # Whole heads at a time: loops over half a head are short, and take three times as long.
    return torch.cat([two, one], -1).mul_(signed[:, None]).addcmul_(x_NHD, cos_ND[:, None])


class Turn(torch.autograd.Function):
    """``turned``, whose gradient is turned back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return turned(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch's decorator renames ctx
        ctx: Any, *grad_outputs: Any
    ) -> Any:
        return turned(grad_outputs[0].contiguous(), *ctx.saved_tensors, back=True), None, None


class _Packed:
    """Marks an attention that takes a tree, and the rows to give."""


@lru_cache
def _packed(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(
        self: Any, hidden_states: Tensor, *given: Any, tree: Tree | None = None,
        rows: Tensor | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        if tree is None:
            return kind.forward(self, hidden_states, *given, **kwargs)
        x = hidden_states[0]
        q, k, v = (
            f(x).unflatten(-1, (-1, self.head_dim)) for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        cos, sin = (t[0] for t in kwargs["position_embeddings"])
        q, k = (Turn.apply(t.to(cos.dtype), cos, sin) for t in (q, k))
        # Some families keep the window by layer, others for all of them.
        held = self if hasattr(self, "sliding_window") else self.config
        q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
        out, _ = tree_attention(
            self, q, k, v, None, scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            sliding_window=getattr(held, "sliding_window", None), tree=tree,
        )  # fmt: skip
        out = out.flatten(-2)
        return self.o_proj(out if rows is None else out.index_select(1, rows)), None

    return type(kind.__name__, (_Packed, kind), {"forward": forward})


class _Reading:
    """Marks a layer that takes ``read``."""


@lru_cache
def _reading(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(
        self: Any, hidden_states: Tensor, *, read: Tensor | None = None, **kwargs: Any
    ) -> Any:
        if read is None:
            return kind.forward(self, hidden_states, **kwargs)
        added, _ = self.self_attn(self.input_layernorm(hidden_states), rows=read, **kwargs)
        x = hidden_states.index_select(-2, read) + added
        return x + self.mlp(self.post_attention_layernorm(x))

    # The name stays, since wrappers of layers (sharding, checkpointing) go by it.
    return type(kind.__name__, (_Reading, kind), {"forward": forward})


def _theirs(module: nn.Module, names: frozenset[str]) -> bool:
    kind = type(module)
    return kind.__name__ in names and kind.__module__.startswith("transformers.")


def lean_layers(backbone: nn.Module) -> bool:
    """Put these classes on a backbone's norms, attentions and last layer, where its family is known.

    They are copied with the model, and without a tree give what they gave before.

    Returns:
        Whether its forward takes ``read``, the rows [K] of the last layer that are wanted.
    """
    found = getattr(backbone, "layers", None)
    layers: list[Any] = list(found) if isinstance(found, nn.ModuleList) else []
    if not layers:
        return False
    last = layers[-1]
    if isinstance(last, _Reading):
        return True
    if not all(_theirs(layer, LAYERS) for layer in layers):
        return False
    for module in backbone.modules():
        if _theirs(module, NORMS):
            module.__class__ = _written(type(module))
    for layer in layers:
        layer.self_attn.__class__ = _packed(type(layer.self_attn))
    last.__class__ = _reading(type(last))
    return True
