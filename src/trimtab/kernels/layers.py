"""Faster decoder layers for transformers models; they compute the same values.

Only some hidden states of the last layer are used: those before trained tokens, or at the last
token of a completion. The last layer needs keys and values of every token, but its output
projection and MLP run only at the rows that are used, forward and backward.

RMS norm and rotary embeddings have their own backward: autograd stores more tensors for them and
reads each several times, which costs a small model as much as its attention.

The classes are subclasses of transformers' own, set on existing modules, so weights, names, copies
and adapters do not change.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trimtab.kernels.tree_attention import Tree, tree_attention

DECODER_LAYERS = frozenset(
    {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}
)
"""Layers that compute x + attention(norm(x)), then x + mlp(norm(x))."""
RMS_NORMS = frozenset({"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"})
"""Norms that compute weight * x / sqrt(mean(x^2) + eps)."""


class RMSNorm(torch.autograd.Function):
    """weight * x / sqrt(mean(x^2) + eps) over the last axis (arXiv 1910.07467)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse_rms = size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        unit = x * inverse_rms
        ctx.save_for_backward(unit, inverse_rms, weight)
        return unit * weight

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch's decorator renames ctx
        ctx: Any, *grad_outputs: Any
    ) -> Any:
        unit, inverse_rms, weight = ctx.saved_tensors
        (g,) = grad_outputs
        width = unit.shape[-1]
        along = (g * unit).view(-1, width)
        d_weight = along.sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, d_weight, None
        # With u = x / size and h = weight g: dx = (h - u mean(u h)) / size.
        mean = (along @ weight).div_(width).view(inverse_rms.shape)
        return (g * weight).addcmul_(unit, mean, value=-1).mul_(inverse_rms), d_weight, None


class _FastNorm:
    """Marks a norm that uses ``RMSNorm``."""


@lru_cache
def _fast_norm_class(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(self: Any, hidden_states: Tensor) -> Any:
        if hidden_states.dtype == self.weight.dtype == torch.float32:
            return RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)
        return kind.forward(self, hidden_states)

    return type(kind.__name__, (_FastNorm, kind), {"forward": forward})


def rotate(x_NHD: Tensor, cos_ND: Tensor, sin_ND: Tensor, back: bool = False) -> Tensor:
    """Apply rotary position embeddings [N, H, D] (arXiv 2104.09864); ``back`` applies the inverse."""
    half = x_NHD.shape[-1] // 2
    first, second = x_NHD.split(half, -1)
    sin = sin_ND[:, :half]
    signed = torch.cat([sin, -sin] if back else [-sin, sin], -1)
    # On whole heads: loops over half a head are short and take three times as long.
    return torch.cat([second, first], -1).mul_(signed[:, None]).addcmul_(x_NHD, cos_ND[:, None])


class Rotate(torch.autograd.Function):
    """``rotate`` with its gradient, the inverse rotation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return rotate(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch's decorator renames ctx
        ctx: Any, *grad_outputs: Any
    ) -> Any:
        return rotate(grad_outputs[0].contiguous(), *ctx.saved_tensors, back=True), None, None


class _TreeAttention:
    """Marks an attention that takes a tree, and the rows to return."""


@lru_cache
def _tree_attention_class(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(
        self: Any,
        hidden_states: Tensor,
        *args: Any,
        tree: Tree | None = None,
        rows: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if tree is None:
            return kind.forward(self, hidden_states, *args, **kwargs)
        x = hidden_states[0]
        q, k, v = (
            f(x).unflatten(-1, (-1, self.head_dim)) for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        cos, sin = (t[0] for t in kwargs["position_embeddings"])
        q, k = (Rotate.apply(t.to(cos.dtype), cos, sin) for t in (q, k))
        # Some families store the window per layer, others in the config.
        window_source = self if hasattr(self, "sliding_window") else self.config
        q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
        out, _ = tree_attention(
            self,
            q,
            k,
            v,
            None,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            sliding_window=getattr(window_source, "sliding_window", None),
            tree=tree,
        )
        out = out.flatten(-2)
        return self.o_proj(out if rows is None else out.index_select(1, rows)), None

    return type(kind.__name__, (_TreeAttention, kind), {"forward": forward})


class _PartialLayer:
    """Marks a layer that takes ``read``, the rows to compute."""


@lru_cache
def _partial_layer_class(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(
        self: Any, hidden_states: Tensor, *, read: Tensor | None = None, **kwargs: Any
    ) -> Any:
        if read is None:
            return kind.forward(self, hidden_states, **kwargs)
        added, _ = self.self_attn(self.input_layernorm(hidden_states), rows=read, **kwargs)
        x = hidden_states.index_select(-2, read) + added
        return x + self.mlp(self.post_attention_layernorm(x))

    # Wrappers of layers (sharding, checkpointing) find them by this name.
    return type(kind.__name__, (_PartialLayer, kind), {"forward": forward})


def _is_transformers(module: nn.Module, names: frozenset[str]) -> bool:
    kind = type(module)
    return kind.__name__ in names and kind.__module__.startswith("transformers.")


def patch_layers(backbone: nn.Module) -> bool:
    """Set the faster classes on the norms, attentions and last layer of a supported backbone.

    They are copied with the model, and behave as before when no tree is passed.

    Returns:
        Whether the backbone's forward takes ``read``, the rows [K] of the last layer to compute.
    """
    modules = getattr(backbone, "layers", None)
    layers: list[Any] = list(modules) if isinstance(modules, nn.ModuleList) else []
    if not layers:
        return False
    last = layers[-1]
    if isinstance(last, _PartialLayer):
        return True
    if not all(_is_transformers(layer, DECODER_LAYERS) for layer in layers):
        return False
    for module in backbone.modules():
        if _is_transformers(module, RMS_NORMS):
            module.__class__ = _fast_norm_class(type(module))
    for layer in layers:
        layer.self_attn.__class__ = _tree_attention_class(type(layer.self_attn))
    last.__class__ = _partial_layer_class(type(last))
    return True
