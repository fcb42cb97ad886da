"""Fast prefill and decode for Llama-like models.

With a small model or few rows, transformers' forward spends as long in Python as in arithmetic.
This forward computes the same from the same live weights with fewer operations: projections of one
input are one matmul, residual sums are in place, and the last layer of a prompt computes only keys
and values, except at its last token.
"""

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, rms_norm, silu

from trimtab.kernels import matmul
from trimtab.kernels.matmul import decode_linear, is_plain_linear
from trimtab.sample.kv_cache import KVCache

FAMILIES = frozenset(
    {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
)
"""Pre-norm decoders with RMS norm, rotary embeddings and a gated MLP."""
ROW_MULTIPLE = 16
"""Rows are padded to a multiple of this for oneDNN, which compiles one primitive per row count."""
MAX_COPIED_WEIGHTS = 2**27
"""Largest number of weights for which joined projections are copied: 0.5 GB in float32."""


class JoinedLinear:
    """Linear layers with the same input as one matmul; layers with adapters are called one by one."""

    def __init__(self, parts: list[nn.Module], kind: torch.dtype | None, copies: bool) -> None:
        """``kind`` is the dtype of the matmul, if not that of the weights."""
        self.parts, self.weight, self.bias = parts, None, None
        self.kind = kind
        if not all(is_plain_linear(p) for p in parts):
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
        """Whether matmuls of many rows run on oneDNN."""
        w = self.weight
        return (
            w is not None
            and w.dtype == torch.float32
            and w.device.type == "cpu"
            and matmul.uses_onednn()
        )

    def __call__(self, x: Tensor) -> Tensor:
        """[R, in] to [R, out], the layers' outputs side by side."""
        if self.weight is not None:
            return decode_linear(
                x if self.kind is None else x.to(self.kind), self.weight, self.bias
            )
        outputs = [p(x) for p in self.parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)


class _Norm:
    """RMS norm of the last dimension, in float32 as in transformers."""

    def __init__(self, norm: Any) -> None:
        self.raw_weight: Tensor = norm.weight.detach()
        self.eps: float = norm.variance_epsilon
        # weight x / sqrt(|x|^2 / n + eps) = weight sqrt(n) x / hypot(|x|, sqrt(n eps)): on a CPU it
        # takes two thirds of the time of torch's rms_norm for few rows, a tenth for thousands.
        width = len(self.raw_weight)
        self.weight = self.raw_weight * math.sqrt(width)
        self.least = self.raw_weight.new_tensor(math.sqrt(width * self.eps))

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32 or self.raw_weight.dtype != torch.float32:
            wide = x.float()
            size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
            size.div_(x.shape[-1]).add_(self.eps).rsqrt_()
            return (wide * size).to(x.dtype) * self.raw_weight
        if x.device.type != "cpu":
            return rms_norm(x, x.shape[-1:], self.raw_weight, self.eps)
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(self.least)
        return (x / size).mul_(self.weight)


class _Layer:
    def __init__(self, layer: Any, kind: torch.dtype | None, copies: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.index: int = attention.layer_idx
        self.scale: float = attention.scaling
        self.dim: int = attention.head_dim
        # Some families store the window per layer, others in the config.
        window_source = attention if hasattr(attention, "sliding_window") else attention.config
        self.window: int | None = getattr(window_source, "sliding_window", None)
        self.before = _Norm(layer.input_layernorm)
        self.after = _Norm(layer.post_attention_layernorm)
        self.heads_norms = [
            _Norm(getattr(attention, n)) for n in ("q_norm", "k_norm") if hasattr(attention, n)
        ]
        self.qkv = JoinedLinear(
            [attention.q_proj, attention.k_proj, attention.v_proj], kind, copies
        )
        self.out = JoinedLinear([attention.o_proj], kind, copies)
        self.wide = JoinedLinear([mlp.gate_proj, mlp.up_proj], kind, copies)
        self.down = JoinedLinear([mlp.down_proj], kind, copies)
        self.act = mlp.act_fn
        self.heads: int = attention.q_proj.out_features // self.dim
        self.kv: int = attention.k_proj.out_features // self.dim

    def rotated_qkv(self, h: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated queries and keys [R, heads + kv, dim], and values [R, kv, dim].

        ``cos`` and ``sin`` are [R, 1 or heads + kv, dim]; the sines of the first half are negated.
        """
        qkv = self.qkv(self.before(h)).view(len(h), -1, self.dim)
        q, k, v = qkv.split([self.heads, self.kv, self.kv], dim=1)
        if self.heads_norms:
            of_query, of_key = self.heads_norms
            qk = torch.cat([of_query(q), of_key(k)], dim=1)
        else:
            qk = qkv[:, : self.heads + self.kv]
        half = self.dim // 2
        exchanged = torch.cat([qk[..., half:], qk[..., :half]], -1)
        rotated = (qk * cos).addcmul_(exchanged, sin)
        return rotated, v

    def finish(self, h: Tensor, attended: Tensor) -> Tensor:
        """Hidden states [R, width] after adding the attention output and the MLP."""
        h = h + self.out(attended)
        gate, up = self.wide(self.after(h)).chunk(2, -1)
        gate = silu(gate) if isinstance(self.act, nn.SiLU) else self.act(gate)
        h += self.down(gate.mul_(up))
        return h


class FastDecoder:
    """Prefill and decode steps with a model's current weights; built anew for each sampler call.

    Raises:
        AttributeError: the model is not of a supported family; the sampler then uses its own forward.
    """

    def __init__(self, model: Any, mixed: bool) -> None:
        core = model.get_base_model() if hasattr(model, "get_base_model") else model
        if type(core).__name__ not in FAMILIES:
            raise AttributeError(
                f"{type(core).__name__} is not of a family that FastDecoder supports"
            )
        decoder = core.model
        weights = sum(p.numel() for p in decoder.layers.parameters())
        copies = weights <= MAX_COPIED_WEIGHTS
        kind = torch.bfloat16 if mixed else None
        self.embed, self.rotary = decoder.embed_tokens, decoder.rotary_emb
        self.norm = _Norm(decoder.norm)
        self.layers = [
            _Layer(x, kind, copies) for x in decoder.layers[: core.config.num_hidden_layers]
        ]
        self.head = JoinedLinear([core.lm_head], kind, copies)
        first = self.layers[0]
        # The rotation is linear, so it also applies the attention scale to the queries.
        self.scaled = torch.ones(first.heads + first.kv, 1, device=self.embed.weight.device)
        self.scaled[: first.heads] = first.scale

    def _angles(self, h: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions [R] for ``_Layer.rotated_qkv``."""
        cos, sin = self.rotary(h, at[:, None])
        sin[..., : sin.shape[-1] // 2].neg_()
        return cos, sin

    def __call__(self, slots: KVCache, token: Tensor, at: Tensor) -> Tensor:
        """Logits [R, V] after ``token`` [R] at positions ``at`` [R]."""
        live = len(token)
        padding_rows = (
            -live % ROW_MULTIPLE if live > ROW_MULTIPLE // 2 and self.head.by_onednn else 0
        )
        if padding_rows:
            token, at = pad(token, (0, padding_rows)), pad(at, (0, padding_rows))
        h: Tensor = self.embed(token)
        cos, sin = (x * self.scaled for x in self._angles(h, at))
        mixed = torch.is_autocast_enabled(h.device.type)
        # As in the model's own forward, attention runs outside mixed precision.
        no_autocast = torch.autocast(h.device.type, enabled=False) if mixed else nullcontext()
        for layer in self.layers:
            rotated, v = layer.rotated_qkv(h, cos, sin)
            cache_dtype = slots.cache[layer.index][1].dtype
            q, k = rotated[:live].to(cache_dtype).split([layer.heads, layer.kv], dim=1)
            slots.write(layer.index, k, v[:live].to(cache_dtype))
            q = q.reshape(live, layer.kv, -1, layer.dim)
            with no_autocast:
                attended = slots.attention(layer.index, q, 1.0, layer.window, None)
            attended = attended.reshape(live, -1).to(h.dtype)
            h = layer.finish(
                h, pad(attended, (0, 0, 0, padding_rows)) if padding_rows else attended
            )
        return self.head(self.norm(h))[:live]

    def prefill(self, slots: KVCache, ids: Tensor, last: Tensor) -> Tensor:
        """Logits [R, V] after the token at position ``last`` [R] of each prompt; fills ``slots``.

        Args:
            ids: Tokens [R, L] of the prompts after their common beginning.
        """
        rows, length = ids.shape
        h: Tensor = self.embed(ids.flatten())
        at = torch.arange(length, device=ids.device) + slots.begun
        cos, sin = (x.repeat(rows, 1, 1) for x in self._angles(h, at))
        ends = torch.arange(rows, device=ids.device) * length + last - slots.begun
        for layer in self.layers:
            rotated, v = layer.rotated_qkv(h, cos, sin)
            # As in the model's own forward, attention runs in float32 under mixed precision on a CPU.
            attention_dtype = (
                torch.float32 if h.device.type == "cpu" and v.dtype == torch.bfloat16 else v.dtype
            )
            q, k = rotated.to(attention_dtype).split([layer.heads, layer.kv], dim=1)
            k, v = (
                x.view(rows, length, -1, layer.dim).transpose(1, 2)
                for x in (k, v.to(attention_dtype))
            )
            with torch.autocast(h.device.type, enabled=False):
                if layer is self.layers[-1]:
                    q = q[ends].view(rows, layer.kv, -1, layer.dim)
                    attended = slots.onto_ends(
                        layer.index, q, k, v, last, layer.scale, layer.window
                    )
                    h = h[ends]
                else:
                    q = q.view(rows, length, -1, layer.dim).transpose(1, 2)
                    attended = slots.onto_prompts(
                        layer.index, q, k, v, layer.scale, layer.window, None
                    )
                    attended = attended.transpose(1, 2)
            h = layer.finish(h, attended.reshape(len(h), -1).to(h.dtype))
        return self.head(self.norm(h))
