"""Attention over a static key-value cache, reached through transformers' attention registry."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "trimtab_decode"
KV = tuple[torch.Tensor, torch.Tensor]


class Slots:
    """Keys and values [slots, kv_heads, S, head_dim] of every layer, and the step under way."""

    def __init__(self, slots: int, length: int) -> None:
        self.slots, self.length = slots, length
        self.cache: dict[int, KV] = {}
        self.prefilled: dict[int, KV] | None = None
        self.rows: torch.Tensor | None = None
        self.at: torch.Tensor | None = None
        self.longest = 0
        self.masks: dict[int | None, torch.Tensor] = {}

    def prefill(self) -> dict[int, KV]:
        """Make the next forward collect prompts' keys and values into the returned mapping."""
        self.prefilled, self.masks = {}, {}
        return self.prefilled

    def decode(self, at: torch.Tensor, longest: int) -> None:
        """Make the next forward one token per row, row r at position ``at[r]`` < longest."""
        self.prefilled, self.masks = None, {}
        self.rows = torch.arange(len(at), device=at.device)
        self.at, self.longest = at, longest

    def enter(self, source: dict[int, KV], rows: torch.Tensor, start: int) -> None:
        """Copy prefilled rows into the slots from ``start`` on."""
        for layer, (k, v) in source.items():
            if layer not in self.cache:
                self.cache[layer] = (self._empty(k), self._empty(v))
            for held, new in zip(self.cache[layer], (k, v), strict=True):
                held[start : start + len(rows), :, : new.shape[2]] = new[rows]

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        return like.new_zeros(self.slots, like.shape[1], self.length, like.shape[3])

    def move(self, source: torch.Tensor, to: torch.Tensor, longest: int) -> None:
        """Copy slots ``source`` over slots ``to``; the two are disjoint."""
        for pair in self.cache.values():
            for held in pair:
                held[to, :, :longest] = held[source, :, :longest]

    def mask(self, q_len: int, window: int | None, device: torch.device) -> torch.Tensor:
        """Which keys each query sees, True where seen: [1 or R, 1, q_len, keys]."""
        if window not in self.masks:
            if self.prefilled is not None:
                at = torch.arange(q_len, device=device)[None, None, :, None]
                keys = torch.arange(q_len, device=device)
            else:
                assert self.at is not None
                at = self.at[:, None, None, None]
                keys = torch.arange(self.longest, device=device)
            seen = keys <= at
            if window is not None:
                seen = seen & (keys > at - window)
            self.masks[window] = seen
        return self.masks[window]


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    decode: Slots,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Output [R, L, heads, head_dim] of query [R, heads, L, head_dim]."""
    layer: int = module.layer_idx  # pyright: ignore[reportAssignmentType]
    rows, heads, q_len, dim = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    mask = decode.mask(q_len, sliding_window, query.device)
    if decode.prefilled is not None:
        decode.prefilled[layer] = (key, value)
        if group > 1:
            key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    else:
        k, v = decode.cache[layer]
        k[decode.rows, :, decode.at] = key[:, :, 0]
        v[decode.rows, :, decode.at] = value[:, :, 0]
        key, value = k[:rows, :, : decode.longest], v[:rows, :, : decode.longest]
        # With one query per row, the heads of a group are its queries: no expansion of keys.
        query = query.reshape(rows, kv_heads, group, dim)
    scale = dim**-0.5 if scaling is None else scaling
    if softcap is not None:
        scores = torch.matmul(query, key.transpose(2, 3)) * scale
        scores = torch.tanh(scores / softcap) * softcap
        weights = scores.masked_fill(~mask, float("-inf")).softmax(-1, dtype=torch.float32)
        out = torch.matmul(weights.to(value.dtype), value)
    else:
        wide = mask.expand(rows, 1, query.shape[2], key.shape[2])
        out = scaled_dot_product_attention(query, key, value, attn_mask=wide, scale=scale)
    return out.reshape(rows, heads, q_len, -1).transpose(1, 2).contiguous(), None


# No mask function of this name: transformers then builds no mask at all.
AttentionInterface.register(NAME, attend)


@contextmanager
def evaluating(model: Any) -> Generator[None, None, None]:
    """Evaluation mode without gradients; every module's own mode is restored after."""
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for m in training:
            m.training = True


@contextmanager
def attached(model: Any, name: str = NAME) -> Generator[None, None, None]:
    """The model attends through the slots, or as ``name`` says; what it had is restored after."""
    before = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = before
