"""Attention over a static KV cache, registered as a transformers attention implementation."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from trimtab.kernels.matmul import is_amd_avx512
from trimtab.types import Ints

NAME = "trimtab_decode"
KV = tuple[torch.Tensor, torch.Tensor]
BLOCK = 32
"""Tokens by which short slots grow; long ones grow by an eighth. Unused capacity is read too."""


def query_as_column() -> bool:
    """Whether a single query is multiplied as a column (keys @ q) instead of a row (q @ keys.T).

    MKL's row-times-matrix is far below memory speed on AMD processors with AVX-512, where
    matrix-times-column is near it; elsewhere the row is faster. The choice depends on the processor,
    not on a measurement, so that a run and its resumption sum in the same order.
    """
    return is_amd_avx512()


class KVCache:
    """Keys and values [slots, kv_heads, S, head_dim] of every layer, and the current decode step.

    If ``query_as_column``, values are stored as [slots, kv_heads, head_dim, S], so that both matmuls
    read the cache contiguously.
    """

    def __init__(self, slots: int, length: int) -> None:
        self.slots, self.length, self.room = slots, length, 0
        self.cache: dict[int, KV] = {}
        self.prefilled: dict[int, KV] | None = None
        self.rows: torch.Tensor | None = None
        self.at: torch.Tensor | None = None
        self.longest = 0
        self.reach = 0
        """Tokens of each slot in the matmuls; those beyond the longest row are masked."""
        self.level: int | None = None
        """Position at which every row writes, if it is the same for all."""
        self.masks: dict[int | None, torch.Tensor | None] = {}
        self.base: Ints | int = 0
        """Tokens of each row that are stored outside its slot (a shared prompt)."""
        self.beginning: dict[int, KV] = {}
        """Keys and values [1, kv_heads, B, head_dim] of what every prompt begins with."""
        self.begun = 0
        """Tokens B of the beginning; the next prefills get the tokens after it."""

    def prefill(self) -> dict[int, KV]:
        """Make the next forward a prefill that writes keys and values into the returned mapping."""
        self.prefilled, self.masks = {}, {}
        return self.prefilled

    def begin(self, source: dict[int, KV], tokens: int) -> None:
        """Let every further prompt begin with the ``tokens`` of a prefill of one row."""
        self.beginning, self.begun = source, tokens

    def decode(self, length: Ints, device: torch.device) -> torch.Tensor:
        """Make the next forward a decode step, row r at position ``length[r]``; returns positions [R]."""
        own = length - self.base
        self.prefilled, self.masks = None, {}
        self.longest = int(own.max()) + 1
        self.level = self.longest - 1 if int(own.min()) == self.longest - 1 else None
        self._grow(self.longest, len(own))
        # On these processors a matmul over a slice of every slot takes 1.5 times as long.
        self.reach = self.room if device.type == "cpu" and query_as_column() else self.longest
        self.rows = torch.arange(len(own), device=device)
        self.at = torch.from_numpy(own).to(device)
        return torch.from_numpy(length).to(device)

    def enter(self, source: dict[int, KV], rows: Ints, widths: Ints, start: int) -> None:
        """Copy prefilled ``rows`` [n], of ``widths`` tokens, into the slots from ``start`` on."""
        self._grow(int(widths.max()) + 1, start)
        for layer, (k, v) in source.items():
            if layer not in self.cache:
                self.cache[layer] = self._empty(k, v)
            for buffer, new in zip(self.cache[layer], (k, v), strict=True):
                buffer[start : start + len(rows), :, : new.shape[2]] = select_rows(new, rows)
                buffer[start : start + len(rows), :, new.shape[2] :] = 0.0

    def _grow(self, need: int, live: int) -> None:
        """Grow every slot to hold ``need`` tokens, in whole blocks; copies the first ``live`` rows."""
        if need <= self.room:
            return
        block = max(BLOCK, need // 8)
        before, self.room = self.room, min(self.length, -(-need // block) * block)
        for layer, pair in self.cache.items():
            self.cache[layer] = self._empty(*pair)
            for old, new in zip(pair, self.cache[layer], strict=True):
                new[:live, :, :before] = old[:live]
                new[:live, :, before:] = 0.0

    def _empty(self, key: torch.Tensor, value: torch.Tensor) -> KV:
        """Uninitialised slots; a row that enters writes its tokens and zeros after them.

        Masked positions have weight 0, and 0 times garbage could be NaN.
        """
        k = key.new_empty(self.slots, key.shape[1], self.room, key.shape[3])
        if value.device.type != "cpu" or not query_as_column():
            return k, value.new_empty(*k.shape[:3], value.shape[3])
        return k, value.new_empty(*k.shape[:2], value.shape[3], self.room).transpose(2, 3)

    def write(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Write this step's keys and values [R, kv, head_dim]."""
        k, v = self.cache[layer]
        if self.level is not None:
            k[: len(key), :, self.level] = key
            v[: len(key), :, self.level] = value
        else:
            k[self.rows, :, self.at] = key
            v[self.rows, :, self.at] = value

    def leave(self, live: int, holes: Ints, last: Ints, longest: int) -> None:
        """Keep ``live`` rows by moving slots ``last`` into ``holes``; ``longest`` is the longest row."""
        if not len(holes):
            return
        reach = longest - (int(np.min(self.base)) if np.size(self.base) else 0)
        for pair in self.cache.values():
            for buffer in pair:
                source, to = (torch.from_numpy(x).to(buffer.device) for x in (last, holes))
                buffer[to, :, :reach] = buffer[source, :, :reach]

    def attention(
        self,
        layer: int,
        query: torch.Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """Attention [R, kv, group, dim] of one query per row to the tokens in its slot."""
        k, v = (x[: len(query), :, : self.reach] for x in self.cache[layer])
        hide = self.hidden(window)
        if query.device.type == "cpu" and softcap is None:
            return attention_over(query, k, v, hide, scale, None)
        return _attend(query, k, v, hide, scale, softcap)

    def hidden(self, window: int | None) -> torch.Tensor | None:
        """Mask [R or 1, 1, 1, S], True at positions a row must not attend to; None without any."""
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
        """Causal attention of prompts [R, heads, L, dim] after the beginning; stores keys and values."""
        key, value = self._store(layer, key, value)
        group, length = query.shape[1] // key.shape[1], key.shape[2]
        if group > 1:
            key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
        if softcap is None and not self.begun and (window is None or window >= length):
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
        """Attention [R, kv, group, dim] of the token at ``last`` [R] of each prompt to its prompt."""
        key, value = self._store(layer, key, value)
        at, keys = last[:, None, None, None], torch.arange(key.shape[2], device=key.device)
        hide = keys > at if window is None else (keys > at) | (keys <= at - window)
        return attention_over(query, key, value, hide, scale, None)

    def _store(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> KV:
        """Put the beginning before keys and values [R, kv, L, head_dim] of prompts, and store both."""
        assert self.prefilled is not None
        if self.begun:
            key, value = (
                torch.cat([before.expand(len(x), -1, -1, -1), x], 2)
                for before, x in zip(self.beginning[layer], (key, value), strict=True)
            )
        self.prefilled[layer] = key, value
        return key, value

    def ahead(self, length: int, window: int | None, device: torch.device) -> torch.Tensor:
        """Mask [1, 1, L - B, L], True where a prompt token after the beginning must not attend."""
        if window not in self.masks:
            keys = torch.arange(length, device=device)
            at = keys[self.begun :, None]
            hide = keys > at
            self.masks[window] = hide if window is None else hide | (keys <= at - window)
        mask = self.masks[window]
        assert mask is not None
        return mask[None, None]


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    decode: KVCache,
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
    # Single-query matmuls are slow in bfloat16 on a CPU, so attention runs in float32 there.
    dtype = torch.float32 if value.device.type == "cpu" and value.dtype == torch.bfloat16 else None
    query, key, value = (x.to(dtype or value.dtype) for x in (query, key, value))
    with torch.autocast(value.device.type, enabled=False):
        if decode.prefilled is not None:
            out = decode.onto_prompts(layer, query, key, value, scale, sliding_window, softcap)
        else:
            decode.write(layer, key[:, :, 0], value[:, :, 0])
            # With one query per row, the heads of a group act as its queries: keys are not expanded.
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
        return attention_over(query, key, value, hide, scale, softcap)
    mask = None
    if hide is not None:
        mask = ~hide.expand(query.shape[0], 1, query.shape[2], key.shape[2])
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def _is_single_query(q: torch.Tensor) -> bool:
    return q.shape[-2] == 1 and q.device.type == "cpu" and query_as_column()


def attention_scores(
    q: torch.Tensor,
    k: torch.Tensor,
    hide: torch.Tensor | None,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    """Attention scores [..., L, S] in float32; -inf where ``hide``."""
    if scale != 1.0:
        q = q * scale
    if _is_single_query(q):
        # A view: with the strides of a transposed column the second matmul would be slow.
        logits = torch.matmul(k, q.transpose(-1, -2)).view(*q.shape[:-1], k.shape[-2]).float()
    else:
        logits = torch.matmul(q, k.transpose(-1, -2)).float()
    if softcap is not None:
        logits = logits.div_(softcap).tanh_().mul_(softcap)
    return logits if hide is None else logits.masked_fill_(hide, float("-inf"))


def weighted_values(weights: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Values averaged by the weights [..., L, S] -> [..., L, dim]."""
    weights = weights.to(v.dtype)
    if _is_single_query(weights):
        return torch.matmul(v.transpose(-1, -2), weights.transpose(-1, -2)).transpose(-1, -2)
    return torch.matmul(weights, v)


def attention_over(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    hide: torch.Tensor | None,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    """Attention output [..., L, dim]."""
    return weighted_values(attention_scores(q, k, hide, scale, softcap).softmax(-1), v)


def common_beginning(prompts: Sequence[Ints]) -> int:
    """Number of tokens that all prompts begin with, without the last token of the shortest.

    >>> common_beginning([np.array([5, 6, 7]), np.array([5, 6, 8, 9]), np.array([5, 6])])
    1
    """
    tokens = min(len(p) for p in prompts) - 1
    for prompt in prompts:
        differs = np.flatnonzero(prompt[:tokens] != prompts[0][:tokens])
        tokens = int(differs[0]) if len(differs) else tokens
    return tokens


def select_rows(tensor: torch.Tensor, rows: Ints) -> torch.Tensor:
    """Rows of a tensor; a view if they are consecutive."""
    first = int(rows[0]) if len(rows) else 0
    if np.array_equal(rows, np.arange(first, first + len(rows))):
        return tensor[first : first + len(rows)]
    return tensor[torch.from_numpy(rows).to(tensor.device)]


@cache
def _register() -> None:
    from transformers import AttentionInterface

    # No mask function is registered under this name, so transformers builds no mask.
    AttentionInterface.register(NAME, attend)


@contextmanager
def eval_mode(model: Any) -> Generator[None, None, None]:
    """Evaluation mode without gradients; restores every module's mode afterwards."""
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for m in training:
            m.training = True


@contextmanager
def use_attention(model: Any, name: str = NAME) -> Generator[None, None, None]:
    """Context in which the model uses the attention ``name``; restores its own afterwards."""
    _register()
    before = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = before
