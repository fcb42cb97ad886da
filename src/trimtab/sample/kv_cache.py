"""Attention over a static key-value cache, reached through transformers' attention registry."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from trimtab.kernels.matmul import amd_512
from trimtab.types import Ints

NAME = "trimtab_decode"
KV = tuple[torch.Tensor, torch.Tensor]
BLOCK = 32
"""Tokens by which short slots grow; long ones by an eighth. Room that holds nothing is read as well."""


def columns() -> bool:
    """Whether one query is best a column beside its matrices, and not a row before them.

    MKL's row times matrix is far from the speed of memory on AMD's processors with AVX-512, where
    matrix times column is near it; on others it is the better one. Told from the processor and not
    by a clock, so that sums of a run and of its resumption have one order.
    """
    return amd_512()


class Slots:
    """Keys and values [slots, kv_heads, S, head_dim] of every layer, and the step under way.

    Where queries are ``columns`` values lie in memory as [slots, kv_heads, head_dim, S], so that
    both products read straight through the cache.
    """

    def __init__(self, slots: int, length: int) -> None:
        self.slots, self.length, self.room = slots, length, 0
        self.cache: dict[int, KV] = {}
        self.prefilled: dict[int, KV] | None = None
        self.rows: torch.Tensor | None = None
        self.at: torch.Tensor | None = None
        self.longest = 0
        self.reach = 0
        """Tokens of each slot that are multiplied; those beyond the longest row are hidden."""
        self.level: int | None = None
        """Where every row writes, if that is one place."""
        self.masks: dict[int | None, torch.Tensor | None] = {}
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
        self.level = self.longest - 1 if int(own.min()) == self.longest - 1 else None
        self._grow(self.longest, len(own))
        # On these processors a product that leaves the end of every slot out takes half as long again.
        self.reach = self.room if device.type == "cpu" and columns() else self.longest
        self.rows = torch.arange(len(own), device=device)
        self.at = torch.from_numpy(own).to(device)
        return torch.from_numpy(length).to(device)

    def enter(self, source: dict[int, KV], rows: Ints, widths: Ints, start: int) -> None:
        """Copy prefilled ``rows`` [n], of ``widths`` tokens, into the slots from ``start`` on."""
        self._grow(int(widths.max()) + 1, start)
        for layer, (k, v) in source.items():
            if layer not in self.cache:
                self.cache[layer] = self._empty(k, v)
            for held, new in zip(self.cache[layer], (k, v), strict=True):
                held[start : start + len(rows), :, : new.shape[2]] = picked(new, rows)
                held[start : start + len(rows), :, new.shape[2] :] = 0.0

    def _grow(self, need: int, live: int) -> None:
        """Room for ``need`` tokens in every slot, in whole blocks; the first ``live`` rows count."""
        if need <= self.room:
            return
        block = max(BLOCK, need // 8)
        before, self.room = self.room, min(self.length, -(-need // block) * block)
        for layer, pair in self.cache.items():
            self.cache[layer] = self._empty(*pair)
            for held, new in zip(pair, self.cache[layer], strict=True):
                new[:live, :, :before] = held[:live]
                new[:live, :, before:] = 0.0

    def _empty(self, key: torch.Tensor, value: torch.Tensor) -> KV:
        """Slots that hold anything: a row is written, and zeros beyond it, when it enters.

        What a row does not see counts with weight 0, which garbage could turn into NaN.
        """
        k = key.new_empty(self.slots, key.shape[1], self.room, key.shape[3])
        if value.device.type != "cpu" or not columns():
            return k, value.new_empty(*k.shape[:3], value.shape[3])
        return k, value.new_empty(*k.shape[:2], value.shape[3], self.room).transpose(2, 3)

    def write(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """This step's keys and values [R, kv, head_dim]."""
        k, v = self.cache[layer]
        if self.level is not None:
            k[: len(key), :, self.level] = key
            v[: len(key), :, self.level] = value
        else:
            k[self.rows, :, self.at] = key
            v[self.rows, :, self.at] = value

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
        k, v = (x[: len(query), :, : self.reach] for x in self.cache[layer])
        hide = self.hidden(window)
        if query.device.type == "cpu" and softcap is None:
            return attended(query, k, v, hide, scale, None)
        return _attend(query, k, v, hide, scale, softcap)

    def hidden(self, window: int | None) -> torch.Tensor | None:
        """Slots [R or 1, 1, 1, S] that a row must not see in this step; None where there is none."""
        if window not in self.masks:
            assert self.at is not None
            at, keys = self.at[:, None, None, None], torch.arange(self.reach)
            keys = keys.to(at.device)
            if window is not None and window < self.longest:
                self.masks[window] = (keys > at) | (keys <= at - window)
            elif self.level is None:
                self.masks[window] = keys > at
            else:
                beyond = (keys >= self.longest)[None, None, None]
                self.masks[window] = beyond if self.reach > self.longest else None
        return self.masks[window]

    def onto_prompts(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """Attention of prompts [R, heads, L, dim] to themselves; their keys and values are kept."""
        assert self.prefilled is not None
        self.prefilled[layer] = (key, value)
        group, length = query.shape[1] // key.shape[1], query.shape[2]
        if group > 1:
            key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
        if softcap is None and (window is None or window >= length):
            return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
        hide = self.ahead(length, window, query.device)
        return _attend(query, key, value, hide, scale, softcap)

    def onto_ends(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        last: torch.Tensor,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        """Attention [R, kv, group, dim] of the token at ``last`` [R] of each prompt to the prompt."""
        assert self.prefilled is not None
        self.prefilled[layer] = (key, value)
        at, keys = last[:, None, None, None], torch.arange(key.shape[2], device=key.device)
        hide = keys > at if window is None else (keys > at) | (keys <= at - window)
        return attended(query, key, value, hide, scale, None)

    def ahead(self, length: int, window: int | None, device: torch.device) -> torch.Tensor:
        """Keys [1, 1, L, L] of a prompt that its tokens must not see."""
        if window not in self.masks:
            keys = torch.arange(length, device=device)
            at = keys[:, None]
            hide = keys > at
            self.masks[window] = hide if window is None else hide | (keys <= at - window)
        found = self.masks[window]
        assert found is not None
        return found[None, None]


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
            out = decode.onto_prompts(layer, query, key, value, scale, sliding_window, softcap)
        else:
            decode.write(layer, key[:, :, 0], value[:, :, 0])
            # With one query per row, the heads of a group are its queries: keys are not expanded.
            query = query.reshape(rows, kv_heads, group, dim)
            out = decode.attention(layer, query, scale, sliding_window, softcap)
    return out.reshape(rows, heads, q_len, -1).transpose(1, 2).contiguous(), None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    hide: torch.Tensor | None,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    if softcap is not None:
        return attended(query, key, value, hide, scale, softcap)
    seen = None
    if hide is not None:
        seen = ~hide.expand(query.shape[0], 1, query.shape[2], key.shape[2])
    return scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale)


def _single(q: torch.Tensor) -> bool:
    return q.shape[-2] == 1 and q.device.type == "cpu" and columns()


def scores(
    q: torch.Tensor,
    k: torch.Tensor,
    hide: torch.Tensor | None,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    """What each of [..., L] queries thinks of each key [..., L, S], in float32; -inf of hidden ones."""
    if scale != 1.0:
        q = q * scale
    if _single(q):
        # A view, since the strides of a transposed column send the second product a slow way.
        made = torch.matmul(k, q.transpose(-1, -2)).view(*q.shape[:-1], k.shape[-2]).float()
    else:
        made = torch.matmul(q, k.transpose(-1, -2)).float()
    if softcap is not None:
        made = made.div_(softcap).tanh_().mul_(softcap)
    return made if hide is None else made.masked_fill_(hide, float("-inf"))


def mean(weights: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Values [..., L, dim] summed by weights [..., L, S]."""
    weights = weights.to(v.dtype)
    if _single(weights):
        return torch.matmul(v.transpose(-1, -2), weights.transpose(-1, -2)).transpose(-1, -2)
    return torch.matmul(weights, v)


def attended(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    hide: torch.Tensor | None,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    """Attention [..., L, dim] to some keys."""
    return mean(scores(q, k, hide, scale, softcap).softmax(-1), v)


def picked(held: torch.Tensor, rows: Ints) -> torch.Tensor:
    """Some rows of a tensor: a view of it where they follow each other."""
    first = int(rows[0]) if len(rows) else 0
    if np.array_equal(rows, np.arange(first, first + len(rows))):
        return held[first : first + len(rows)]
    return held[torch.from_numpy(rows).to(held.device)]


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
