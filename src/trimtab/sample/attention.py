"""Attention over a static key-value cache, reached through transformers' attention registry."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from trimtab.types import Ints

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
        self.base: Ints | int = 0
        """Tokens of each row that are not in its slot."""

    def prefill(self) -> dict[int, KV]:
        """Make the next forward collect prompts' keys and values into the returned mapping."""
        self.prefilled, self.masks = {}, {}
        return self.prefilled

    def decode(self, length: Ints, device: torch.device) -> torch.Tensor:
        """Make the next forward one token per row, row r at position ``length[r]``; positions [R]."""
        own = length - self.base
        self.prefilled, self.masks = None, {}
        self.longest = int(own.max()) + 1
        self.rows = torch.arange(len(own), device=device)
        self.at = torch.from_numpy(own).to(device)
        return torch.from_numpy(length).to(device)

    def enter(self, source: dict[int, KV], rows: Ints, widths: Ints, start: int) -> None:
        """Copy prefilled ``rows`` [n], of ``widths`` tokens, into the slots from ``start`` on."""
        for layer, (k, v) in source.items():
            if layer not in self.cache:
                self.cache[layer] = (self._empty(k), self._empty(v))
            index = torch.from_numpy(rows).to(k.device)
            for held, new in zip(self.cache[layer], (k, v), strict=True):
                held[start : start + len(rows), :, : new.shape[2]] = new[index]

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        return like.new_zeros(self.slots, like.shape[1], self.length, like.shape[3])

    def leave(self, live: int, holes: Ints, last: Ints, longest: int) -> None:
        """Keep ``live`` rows: those of slots ``last`` move into ``holes``; ``longest`` tokens count."""
        if not len(holes):
            return
        reach = longest - (int(np.min(self.base)) if np.size(self.base) else 0)
        for pair in self.cache.values():
            for held in pair:
                source, to = (torch.from_numpy(x).to(held.device) for x in (last, holes))
                held[to, :, :reach] = held[source, :, :reach]

    def attention(
        self,
        layer: int,
        query: torch.Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """Attention [R, kv, group, dim] of one query a row to what its slot holds."""
        rows, _, group, _ = query.shape
        k, v = (x[:rows, :, : self.longest] for x in self.cache[layer])
        return _attend(query, k, v, self.mask(group, window, query.device), scale, softcap)

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
    scale = dim**-0.5 if scaling is None else scaling
    # Products of one query are slow in bfloat16 on a CPU, and attention takes no part of it there.
    kind = torch.float32 if value.device.type == "cpu" and value.dtype == torch.bfloat16 else None
    query, key, value = (x.to(kind or value.dtype) for x in (query, key, value))
    with torch.autocast(value.device.type, enabled=False):
        if decode.prefilled is not None:
            decode.prefilled[layer] = (key, value)
            if group > 1:
                key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
            mask = decode.mask(q_len, sliding_window, query.device)
            out = _attend(query, key, value, mask, scale, softcap)
        else:
            k, v = decode.cache[layer]
            k[decode.rows, :, decode.at] = key[:, :, 0]
            v[decode.rows, :, decode.at] = value[:, :, 0]
            # With one query per row, the heads of a group are its queries: keys are not expanded.
            query = query.reshape(rows, kv_heads, group, dim)
            out = decode.attention(layer, query, scale, sliding_window, softcap)
    return out.reshape(rows, heads, q_len, -1).transpose(1, 2).contiguous(), None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    if softcap is None:
        wide = mask.expand(query.shape[0], 1, query.shape[2], key.shape[2])
        return scaled_dot_product_attention(query, key, value, attn_mask=wide, scale=scale)
    scores = torch.matmul(query, key.transpose(2, 3)) * scale
    scores = torch.tanh(scores / softcap) * softcap
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1, dtype=torch.float32)
    return torch.matmul(weights.to(value.dtype), value)


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
