"""Decoding one token a row through a Llama-shaped model, in as few operations as it takes.

transformers' own forward spends as long in Python as in arithmetic where the model is small or
few rows live. What is here computes the same from the same live weights: projections of one input
are one product, and residual sums are made in place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, rms_norm, silu

from trimtab import products
from trimtab.products import plain, product
from trimtab.sample.attention import Slots

FAMILIES = frozenset(
    {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
)
"""Pre-norm decoders of RMS norms, rotary positions and gated units."""
GRAIN = 16
"""Rows are made up to a multiple of it where each number of them has a program of its own."""
COPIED = 2**27
"""Weights up to which joined projections are copied: half a gigabyte in float32."""


class Joined:
    """Linear layers of one input as one product; adapters and others are called as they are."""

    def __init__(self, parts: list[nn.Module], kind: torch.dtype | None, copies: bool) -> None:
        """``kind`` is the type to multiply in, where that is not the weights' own."""
        self.parts, self.weight, self.bias = parts, None, None
        self.kind = kind
        if not all(plain(p) for p in parts):
            return
        weights: list[Tensor] = [p.weight for p in parts]  # pyright: ignore[reportAssignmentType]
        if not copies and (len(parts) > 1 or kind is not None):
            return
        self.weight = weights[0] if len(parts) == 1 else torch.cat(weights)
        biases: list[Tensor | None] = [p.bias for p in parts]  # pyright: ignore[reportAssignmentType]
        if any(b is not None for b in biases):
            self.bias = torch.cat(
                [
                    w.new_zeros(len(w)) if b is None else b
                    for w, b in zip(weights, biases, strict=True)
                ]
            )
        if kind is not None:
            self.weight = self.weight.to(kind)
            self.bias = None if self.bias is None else self.bias.to(kind)

    @property
    def by_onednn(self) -> bool:
        """Whether products of many rows go by oneDNN."""
        w = self.weight
        return (
            w is not None
            and w.dtype == torch.float32
            and w.device.type == "cpu"
            and products.quick()
        )

    def __call__(self, x: Tensor) -> Tensor:
        """[R, in] to [R, out], the layers' outputs side by side."""
        if self.weight is not None:
            return product(x if self.kind is None else x.to(self.kind), self.weight, self.bias)
        made = [p(x) for p in self.parts]
        return made[0] if len(made) == 1 else torch.cat(made, -1)


class _Layer:
    def __init__(self, layer: Any, kind: torch.dtype | None, copies: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.index: int = attention.layer_idx
        self.scale: float = attention.scaling
        self.dim: int = attention.head_dim
        # Some families keep the window by layer, others for all of them.
        held = attention if hasattr(attention, "sliding_window") else attention.config
        self.window: int | None = getattr(held, "sliding_window", None)
        self.before, self.after = layer.input_layernorm, layer.post_attention_layernorm
        self.query_norm = getattr(attention, "q_norm", None)
        self.key_norm = getattr(attention, "k_norm", None)
        self.qkv = Joined([attention.q_proj, attention.k_proj, attention.v_proj], kind, copies)
        self.out = Joined([attention.o_proj], kind, copies)
        self.wide = Joined([mlp.gate_proj, mlp.up_proj], kind, copies)
        self.down = Joined([mlp.down_proj], kind, copies)
        self.act = mlp.act_fn
        self.heads: int = attention.q_proj.out_features // self.dim
        self.kv: int = attention.k_proj.out_features // self.dim


class Lean:
    """The decode step of a model as its weights stand; made anew for each call of the sampler.

    Raises:
        AttributeError: the model is not built as its family is; it is then sampled as it comes.
    """

    def __init__(self, model: Any, mixed: bool) -> None:
        core = model.get_base_model() if hasattr(model, "get_base_model") else model
        if type(core).__name__ not in FAMILIES:
            raise AttributeError(f"{type(core).__name__} is of no family that is decoded lean")
        decoder = core.model
        weights = sum(p.numel() for p in decoder.layers.parameters())
        copies = weights <= COPIED
        kind = torch.bfloat16 if mixed else None
        self.embed, self.rotary, self.norm = decoder.embed_tokens, decoder.rotary_emb, decoder.norm
        self.layers = [
            _Layer(x, kind, copies) for x in decoder.layers[: core.config.num_hidden_layers]
        ]
        self.head = Joined([core.lm_head], kind, copies)

    def __call__(self, slots: Slots, token: Tensor, at: Tensor) -> Tensor:
        """Logits [R, V] after ``token`` [R] at positions ``at`` [R]."""
        live = len(token)
        more = -live % GRAIN if live > GRAIN // 2 and self.head.by_onednn else 0
        if more:
            token, at = pad(token, (0, more)), pad(at, (0, more))
        h: Tensor = self.embed(token)
        cos, sin = self.rotary(h, at[:, None])
        half = cos.shape[-1] // 2
        rows = len(h)
        for layer in self.layers:
            made = layer.qkv(_normed(h, layer.before)).view(rows, -1, layer.dim)
            q, k, v = made.split([layer.heads, layer.kv, layer.kv], dim=1)
            if layer.query_norm is not None:
                q, k = _normed(q, layer.query_norm), _normed(k, layer.key_norm)
                turned = torch.cat([q, k], dim=1)
            else:
                turned = made[:, : layer.heads + layer.kv]
            a, b = turned[..., :half], turned[..., half:]
            turned = turned * cos
            turned[..., :half].addcmul_(b, sin[..., :half], value=-1)
            turned[..., half:].addcmul_(a, sin[..., half:])
            kept = slots.cache[layer.index][1].dtype
            q, k = turned[:live].to(kept).split([layer.heads, layer.kv], dim=1)
            slots.write(layer.index, k, v[:live].to(kept))
            q = q.reshape(live, layer.kv, -1, layer.dim)
            # As in the model's own forward, attention takes no part in mixed precision.
            with torch.autocast(h.device.type, enabled=False):
                seen = slots.attention(layer.index, q, layer.scale, layer.window, None)
            seen = seen.reshape(live, -1).to(h.dtype)
            h = h + layer.out(pad(seen, (0, 0, 0, more)) if more else seen)
            gate, up = layer.wide(_normed(h, layer.after)).chunk(2, -1)
            gate = silu(gate) if isinstance(layer.act, nn.SiLU) else layer.act(gate)
            h += layer.down(gate.mul_(up))
        return self.head(_normed(h, self.norm))[:live]


def _normed(x: Tensor, norm: Any) -> Tensor:
    """The RMS norm of the last dimension, in float32 as transformers has it."""
    if x.dtype == norm.weight.dtype == torch.float32:
        return rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)
    wide = x.float()
    size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
    size.div_(x.shape[-1]).add_(norm.variance_epsilon).rsqrt_()
    return (wide * size).to(x.dtype) * norm.weight
