"""Prompts, then one token a row, through a Llama-shaped model, in as few operations as it takes.

transformers' own forward spends as long in Python as in arithmetic where the model is small or
few rows live. What is here computes the same from the same live weights: projections of one input
are one product, residual sums are made in place, and of a prompt only the keys and values of the
last layer are computed beyond its last token.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, rms_norm, silu

from trimtab.kernels import matmul
from trimtab.kernels.matmul import few, plain
from trimtab.sample.kv_cache import Slots

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
            w is not None and w.dtype == torch.float32 and w.device.type == "cpu" and matmul.quick()
        )

    def __call__(self, x: Tensor) -> Tensor:
        """[R, in] to [R, out], the layers' outputs side by side."""
        if self.weight is not None:
            return few(x if self.kind is None else x.to(self.kind), self.weight, self.bias)
        made = [p(x) for p in self.parts]
        return made[0] if len(made) == 1 else torch.cat(made, -1)


class _Norm:
    """The RMS norm of the last dimension, in float32 as transformers has it."""

    def __init__(self, norm: Any) -> None:
        self.given: Tensor = norm.weight.detach()
        self.eps: float = norm.variance_epsilon
        # weight x / sqrt(|x|^2 / n + eps) = weight sqrt(n) x / hypot(|x|, sqrt(n eps)), on a CPU in
        # two thirds of the time of torch's own at few rows, and a tenth at thousands.
        width = len(self.given)
        self.weight = self.given * math.sqrt(width)
        self.least = self.given.new_tensor(math.sqrt(width * self.eps))

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32 or self.given.dtype != torch.float32:
            wide = x.float()
            size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
            size.div_(x.shape[-1]).add_(self.eps).rsqrt_()
            return (wide * size).to(x.dtype) * self.given
        if x.device.type != "cpu":
            return rms_norm(x, x.shape[-1:], self.given, self.eps)
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(self.least)
        return (x / size).mul_(self.weight)


class _Layer:
    def __init__(self, layer: Any, kind: torch.dtype | None, copies: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.index: int = attention.layer_idx
        self.scale: float = attention.scaling
        self.dim: int = attention.head_dim
        # Some families keep the window by layer, others for all of them.
        held = attention if hasattr(attention, "sliding_window") else attention.config
        self.window: int | None = getattr(held, "sliding_window", None)
        self.before = _Norm(layer.input_layernorm)
        self.after = _Norm(layer.post_attention_layernorm)
        self.heads_norms = [
            _Norm(getattr(attention, n)) for n in ("q_norm", "k_norm") if hasattr(attention, n)
        ]
        self.qkv = Joined([attention.q_proj, attention.k_proj, attention.v_proj], kind, copies)
        self.out = Joined([attention.o_proj], kind, copies)
        self.wide = Joined([mlp.gate_proj, mlp.up_proj], kind, copies)
        self.down = Joined([mlp.down_proj], kind, copies)
        self.act = mlp.act_fn
        self.heads: int = attention.q_proj.out_features // self.dim
        self.kv: int = attention.k_proj.out_features // self.dim

    def turned(self, h: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys [R, heads + kv, dim] at their positions, and values [R, kv, dim].

        ``cos`` and ``sin`` are [R, 1 or heads + kv, dim], sines of the first half negative.
        """
        made = self.qkv(self.before(h)).view(len(h), -1, self.dim)
        q, k, v = made.split([self.heads, self.kv, self.kv], dim=1)
        if self.heads_norms:
            of_query, of_key = self.heads_norms
            qk = torch.cat([of_query(q), of_key(k)], dim=1)
        else:
            qk = made[:, : self.heads + self.kv]
        half = self.dim // 2
        exchanged = torch.cat([qk[..., half:], qk[..., :half]], -1)
        turned = (qk * cos).addcmul_(exchanged, sin)
        return turned, v

    def added(self, h: Tensor, seen: Tensor) -> Tensor:
        """The states [R, width] after what attention gave, and after the gated unit."""
        h = h + self.out(seen)
        gate, up = self.wide(self.after(h)).chunk(2, -1)
        gate = silu(gate) if isinstance(self.act, nn.SiLU) else self.act(gate)
        h += self.down(gate.mul_(up))
        return h


class Lean:
    """Prompts and decode steps of a model as its weights stand; made anew for each call of the sampler.

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
        self.embed, self.rotary = decoder.embed_tokens, decoder.rotary_emb
        self.norm = _Norm(decoder.norm)
        self.layers = [
            _Layer(x, kind, copies) for x in decoder.layers[: core.config.num_hidden_layers]
        ]
        self.head = Joined([core.lm_head], kind, copies)
        first = self.layers[0]
        # Queries come scaled out of the rotation, which is linear.
        self.scaled = torch.ones(first.heads + first.kv, 1, device=self.embed.weight.device)
        self.scaled[: first.heads] = first.scale

    def _angles(self, h: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines for ``_Layer.turned``, of positions [R]."""
        cos, sin = self.rotary(h, at[:, None])
        sin[..., : sin.shape[-1] // 2].neg_()
        return cos, sin

    def __call__(self, slots: Slots, token: Tensor, at: Tensor) -> Tensor:
        """Logits [R, V] after ``token`` [R] at positions ``at`` [R]."""
        live = len(token)
        more = -live % GRAIN if live > GRAIN // 2 and self.head.by_onednn else 0
        if more:
            token, at = pad(token, (0, more)), pad(at, (0, more))
        h: Tensor = self.embed(token)
        cos, sin = (x * self.scaled for x in self._angles(h, at))
        mixed = torch.is_autocast_enabled(h.device.type)
        # As in the model's own forward, attention takes no part in mixed precision.
        apart = torch.autocast(h.device.type, enabled=False) if mixed else nullcontext()
        for layer in self.layers:
            turned, v = layer.turned(h, cos, sin)
            kept = slots.cache[layer.index][1].dtype
            q, k = turned[:live].to(kept).split([layer.heads, layer.kv], dim=1)
            slots.write(layer.index, k, v[:live].to(kept))
            q = q.reshape(live, layer.kv, -1, layer.dim)
            with apart:
                seen = slots.attention(layer.index, q, 1.0, layer.window, None)
            seen = seen.reshape(live, -1).to(h.dtype)
            h = layer.added(h, pad(seen, (0, 0, 0, more)) if more else seen)
        return self.head(self.norm(h))[:live]

    def prompts(self, slots: Slots, ids: Tensor, last: Tensor) -> Tensor:
        """Logits [R, V] after the token at ``last`` [R] of prompts [R, L]; ``slots`` collects them."""
        rows, long = ids.shape
        h: Tensor = self.embed(ids.flatten())
        at = torch.arange(long, device=ids.device)
        cos, sin = (x.repeat(rows, 1, 1) for x in self._angles(h, at))
        ends = torch.arange(rows, device=ids.device) * long + last
        for layer in self.layers:
            turned, v = layer.turned(h, cos, sin)
            # As in the model's own forward, attention takes no part in mixed precision on a CPU.
            kept = (
                torch.float32 if h.device.type == "cpu" and v.dtype == torch.bfloat16 else v.dtype
            )
            q, k = turned.to(kept).split([layer.heads, layer.kv], dim=1)
            k, v = (x.view(rows, long, -1, layer.dim).transpose(1, 2) for x in (k, v.to(kept)))
            with torch.autocast(h.device.type, enabled=False):
                if layer is self.layers[-1]:
                    q = q[ends].view(rows, layer.kv, -1, layer.dim)
                    seen = slots.onto_ends(layer.index, q, k, v, last, layer.scale, layer.window)
                    h = h[ends]
                else:
                    q = q.view(rows, long, -1, layer.dim).transpose(1, 2)
                    seen = slots.onto_prompts(layer.index, q, k, v, layer.scale, layer.window, None)
                    seen = seen.transpose(1, 2)
            h = layer.added(h, seen.reshape(len(h), -1).to(h.dtype))
        return self.head(self.norm(h))
