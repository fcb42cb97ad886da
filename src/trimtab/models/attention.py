"""Tree attention: each segment attends to its ancestors and, causally, to itself.

Reaches any transformers decoder through its attention interface, under the name ``NAME``; the
tree travels as the keyword argument ``tree`` of the model's forward.

On CPU, and wherever FlexAttention is not used, segments of like shape are gathered into buckets
and go through one SDPA call each: no dense mask over the pack, no loop over completions. On CUDA,
FlexAttention takes the tree as a block mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from trimtab.data.pack import Pack, Segment

NAME = "trimtab_tree"

_WASTE = 1.15
"""A bucket may compute this many times the scores its segments need; beyond, a new one starts."""
_NEVER = 2**30
"""Position of a padded key: after every query."""


@dataclass(slots=True)
class Bucket:
    """R segments of like shape: Q query slots and S key slots each, padded."""

    query_RQ: Tensor
    """Position of each query; in padding that of the row's last key."""
    key_RS: Tensor
    """Position of each key; ``_NEVER`` in padding."""
    causal: bool
    """Whether its rows are whole sequences: then nothing but order hides a key from a real query."""
    masks: dict[tuple[int, torch.dtype], Tensor] = field(
        default_factory=dict[tuple[int, torch.dtype], Tensor]
    )

    def mask(self, window: int, kind: torch.dtype) -> Tensor:
        """[R, 1, Q, S] to add to scores: 0 where attended, else -inf; ``window`` 0 has no end."""
        if (window, kind) not in self.masks:
            # Ancestors stand at smaller positions, so one comparison says both "an ancestor" and
            # "not later in the same segment".
            distance = self.query_RQ[:, :, None] - self.key_RS[:, None, :]
            hidden = distance < 0
            if window > 0:
                hidden |= distance >= window
            made = torch.zeros(hidden.shape, dtype=kind, device=hidden.device)
            self.masks[window, kind] = made.masked_fill_(hidden, float("-inf"))[:, None]
        return self.masks[window, kind]


@dataclass(slots=True)
class Rows:
    """Which tokens of a pack stand in the buckets' rows, and where each stands there."""

    token_M: Tensor
    """Pack index of each place of all buckets' rows, end to end; 0 in padding."""
    place_N: Tensor
    """A place of each token: its own segment's."""
    again_E: Tensor
    """Further places, of prompts' tokens in their completions' rows."""
    token_E: Tensor
    """Whose they are."""
    sizes: list[int]
    """Places of each bucket."""


@dataclass(slots=True)
class Tree:
    """A pack's tree, ready for attention."""

    buckets: list[Bucket]
    query: Rows
    key: Rows
    padding_M: Tensor | None
    """Query places that are padding; None where there are none."""
    segment_N: Tensor
    """Segment of each token."""
    parent_N: Tensor
    """Parent segment of each token's segment, -1 for none."""
    positions_N: Tensor
    flex: dict[int, Any] = field(default_factory=dict[int, Any])
    """FlexAttention block masks by window."""


def _divide(shapes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Indices of like shapes together. ``shapes`` are (queries, keys)."""

    def rank(i: int) -> tuple[bool, int, int, int]:
        q, s = shapes[i]
        return (q < s, -s, -q, i)

    parts: list[list[int]] = []
    wide = deep = needed = 0
    whole = True
    for i in sorted(range(len(shapes)), key=rank):
        q, s = shapes[i]
        grown = (len(parts[-1]) + 1) * max(wide, q) * max(deep, s) if parts else 0
        # Whole sequences need no mask, so they stay among themselves.
        if not parts or whole != (q == s) or grown > _WASTE * (needed + q * s):
            parts.append([])
            wide = deep = needed = 0
        whole = q == s
        parts[-1].append(i)
        wide, deep, needed = max(wide, q), max(deep, s), needed + q * s
    return parts


@lru_cache(1)
def make_tree(pack: Pack) -> Tree:
    """The attention plan of ``pack``, on its device.

    The last one is kept: policy, critic and reference go through a pack one after the other.
    """
    device = pack.ids_N.device
    segments = pack.segments
    positions = pack.positions_N.cpu().numpy()

    def span(s: Segment) -> np.ndarray:
        return np.arange(s.start, s.start + s.length)

    def put(x: np.ndarray) -> Tensor:
        return torch.from_numpy(x).to(device)

    keys: list[np.ndarray] = []
    for s in segments:
        keys.append(span(s) if s.parent < 0 else np.concatenate([keys[s.parent], span(s)]))
    shapes = [(s.length, len(k)) for s, k in zip(segments, keys, strict=True)]
    buckets: list[Bucket] = []
    queries: list[np.ndarray] = []
    held: list[np.ndarray] = []
    real: list[np.ndarray] = []
    query_place, key_place = (np.zeros(len(positions), dtype=np.int64) for _ in range(2))
    again: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
    whose: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
    query_at = key_at = 0
    for part in _divide(shapes):
        wide = max(shapes[i][0] for i in part)
        deep = max(shapes[i][1] for i in part)
        query = np.zeros((len(part), wide), dtype=np.int64)
        key = np.zeros((len(part), deep), dtype=np.int64)
        query_position = np.zeros((len(part), wide), dtype=np.int64)
        key_position = np.full((len(part), deep), _NEVER, dtype=np.int64)
        is_real = np.zeros((len(part), wide), dtype=np.bool_)
        for r, i in enumerate(part):
            q, s = shapes[i]
            mine = span(segments[i])
            query[r, :q], key[r, :s], is_real[r, :q] = mine, keys[i], True
            key_position[r, :s] = positions[keys[i]]
            query_position[r, :q] = positions[mine]
            query_position[r, q:] = positions[mine[-1]]
            query_place[mine] = query_at + r * wide + np.arange(q)
            row = key_at + r * deep
            key_place[mine] = row + np.arange(s - q, s)
            again.append(row + np.arange(s - q))
            whose.append(keys[i][: s - q])
        whole = all(shapes[i][0] == shapes[i][1] for i in part)
        buckets.append(Bucket(put(query_position), put(key_position), whole))
        queries.append(query.ravel())
        held.append(key.ravel())
        real.append(is_real.ravel())
        query_at += query.size
        key_at += key.size
    none = put(np.zeros(0, dtype=np.int64))
    padding = ~np.concatenate(real)
    lengths = [s.length for s in segments]
    return Tree(
        buckets,
        Rows(put(np.concatenate(queries)), put(query_place), none, none, [len(x) for x in queries]),
        Rows(
            put(np.concatenate(held)), put(key_place), put(np.concatenate(again)),
            put(np.concatenate(whose)), [len(x) for x in held],
        ),
        put(padding) if padding.any() else None,
        put(np.repeat(np.arange(len(segments)), lengths)),
        put(np.repeat([s.parent for s in segments], lengths)),
        pack.positions_N,
    )  # fmt: skip


class _Spread(torch.autograd.Function):
    """Tokens [N, H, D] to the places of rows [M, H, D].

    The backward gathers too, since almost every token has one place: autograd's own would add one
    gradient of the whole pack for each bucket.
    """

    @staticmethod
    def forward(ctx: Any, x_NHD: Tensor, rows: Rows) -> Tensor:
        ctx.rows = rows
        return x_NHD.index_select(0, rows.token_M)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        rows: Rows = ctx.rows
        (grad_MHD,) = grad_outputs
        made = grad_MHD.index_select(0, rows.place_N)
        if len(rows.token_E):
            made.index_add_(0, rows.token_E, grad_MHD.index_select(0, rows.again_E))
        return made, None


class _Collect(torch.autograd.Function):
    """Places of query rows [M, H, D] back to tokens [N, H, D]; padding gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x_MHD: Tensor, rows: Rows, padding_M: Tensor | None) -> Tensor:
        ctx.rows, ctx.padding = rows, padding_M
        return x_MHD.index_select(0, rows.place_N)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (grad_NHD,) = grad_outputs
        made = grad_NHD.index_select(0, ctx.rows.token_M)
        if ctx.padding is not None:
            made.masked_fill_(ctx.padding[:, None, None], 0.0)
        return made, None, None


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    dropout: float,
    softcap: float,
) -> Tensor:
    """Attention of [R, H, Q, D] over [R, H, S, D]; soft-capped scores have no fused kernel."""
    if not softcap:
        return scaled_dot_product_attention(
            q, k, v, mask, dropout, is_causal=mask is None, scale=scale
        )
    assert mask is not None
    scores = torch.tanh(q @ k.transpose(-1, -2) * (scale / softcap)) * softcap
    weights = (scores + mask).float().softmax(-1)
    return torch.dropout(weights.to(q.dtype), dropout, dropout > 0) @ v


def bucketed(
    q_NHD: Tensor,
    k_NHD: Tensor,
    v_NHD: Tensor,
    tree: Tree,
    scale: float,
    dropout: float,
    window: int,
    softcap: float,
) -> Tensor:
    """Tree attention by buckets: [N, H, D]. Keys and values may have fewer heads (grouped)."""
    repeat = q_NHD.shape[1] // k_NHD.shape[1]
    if repeat > 1:
        k_NHD = k_NHD.repeat_interleave(repeat, 1)
        v_NHD = v_NHD.repeat_interleave(repeat, 1)

    def parts(x: Tensor, rows: Rows) -> tuple[Tensor, ...]:
        spread: Any = _Spread.apply(x, rows)
        return spread.split(rows.sizes)

    outs: list[Tensor] = []
    for b, q, k, v in zip(
        tree.buckets, parts(q_NHD, tree.query), parts(k_NHD, tree.key), parts(v_NHD, tree.key),
        strict=True,
    ):  # fmt: skip
        q, k, v = (x.unflatten(0, (len(b.query_RQ), -1)).transpose(1, 2) for x in (q, k, v))
        plain = b.causal and not window and not softcap
        mask = None if plain else b.mask(window, q.dtype)
        outs.append(_attend(q, k, v, mask, scale, dropout, softcap).transpose(1, 2).flatten(0, 1))
    made: Any = _Collect.apply(torch.cat(outs), tree.query, tree.padding_M)
    return made


def tree_mask(tree: Tree, window: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The tree as a FlexAttention ``mask_mod``."""
    segment, parent, position = tree.segment_N, tree.parent_N, tree.positions_N

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = ((segment[q] == segment[k]) & (q >= k)) | (parent[q] == segment[k])
        return seen & (position[q] - position[k] < window) if window > 0 else seen

    return mask_mod


@lru_cache(1)
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def flexed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tree: Tree,
    scale: float,
    window: int,
    softcap: float,
    attend: Callable[..., Any],
) -> Tensor:
    """Tree attention by FlexAttention on [1, H, N, D] tensors."""
    from torch.nn.attention.flex_attention import create_block_mask

    if window not in tree.flex:
        n = q.shape[2]
        tree.flex[window] = create_block_mask(tree_mask(tree, window), None, None, n, n, q.device)
    cap: Callable[..., Tensor] | None = None
    if softcap:

        def capped(score: Tensor, *_: Tensor) -> Tensor:
            return softcap * torch.tanh(score / softcap)

        cap = capped

    grouped = q.shape[1] != k.shape[1]
    return attend(
        q, k, v, score_mod=cap, block_mask=tree.flex[window], scale=scale, enable_gqa=grouped
    )


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    tree: Tree | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in place of its own attention; q, k, v are [1, H, N, D]."""
    assert tree is not None, "tree attention was called without a tree"
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window, cap = sliding_window or 0, softcap or 0.0
    if query.is_cuda and not dropout:
        query, key = query.to(value.dtype), key.to(value.dtype)
        out = flexed(query, key, value, tree, scale, window, cap, _compiled_flex())
        return out.transpose(1, 2).contiguous(), None
    # Under mixed precision rotated queries and keys come back in fp32, values in bfloat16.
    q, k, v = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))
    return bucketed(q, k, v, tree, scale, dropout, window, cap)[None], None


def _no_mask(*_: Any, **__: Any) -> None:
    """transformers builds no mask: the tree is one."""


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, _no_mask)
