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

_WASTE = 1.5
"""A bucket may compute this many times the scores its segments need; beyond, a new one starts."""


@dataclass(slots=True)
class Bucket:
    """R segments of like shape: Q query slots and S key slots each, padded."""

    query_RQ: Tensor
    """Pack index of each query; 0 in padding."""
    key_RS: Tensor
    """Pack index of each key; 0 in padding."""
    distance_RQS: Tensor
    """Query position minus key position, -1 where the key may not be seen."""
    masks: dict[int, Tensor] = field(default_factory=dict[int, Tensor])

    def mask(self, window: int) -> Tensor:
        """[R, 1, Q, S], True where attended; ``window`` 0 means unlimited."""
        if window not in self.masks:
            seen = self.distance_RQS >= 0
            if window > 0:
                seen &= self.distance_RQS < window
            # A padded query sees everything: a row without keys would be NaN.
            seen |= ~(self.distance_RQS >= 0).any(-1, keepdim=True)
            self.masks[window] = seen[:, None]
        return self.masks[window]


@dataclass(slots=True)
class Tree:
    """A pack's tree, ready for attention."""

    buckets: list[Bucket]
    gather_N: Tensor
    """Where each pack token's output stands in the buckets' concatenated outputs."""
    segment_N: Tensor
    """Segment of each token."""
    parent_N: Tensor
    """Parent segment of each token's segment, -1 for none."""
    positions_N: Tensor
    flex: dict[int, Any] = field(default_factory=dict[int, Any])
    """FlexAttention block masks by window."""


def _divide(shapes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Indices of like shapes together. ``shapes`` are (queries, keys)."""
    order = sorted(range(len(shapes)), key=lambda i: (-shapes[i][1], -shapes[i][0], i))
    parts: list[list[int]] = []
    wide = deep = needed = 0
    for i in order:
        q, s = shapes[i]
        grown = (len(parts[-1]) + 1) * max(wide, q) * max(deep, s) if parts else 0
        if not parts or grown > _WASTE * (needed + q * s):
            parts.append([])
            wide = deep = needed = 0
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

    keys: list[np.ndarray] = []
    for s in segments:
        keys.append(span(s) if s.parent < 0 else np.concatenate([keys[s.parent], span(s)]))
    shapes = [(s.length, len(k)) for s, k in zip(segments, keys, strict=True)]
    buckets: list[Bucket] = []
    gather = np.zeros(len(positions), dtype=np.int64)
    offset = 0
    for part in _divide(shapes):
        wide = max(shapes[i][0] for i in part)
        deep = max(shapes[i][1] for i in part)
        query = np.zeros((len(part), wide), dtype=np.int64)
        key = np.zeros((len(part), deep), dtype=np.int64)
        distance = np.full((len(part), wide, deep), -1, dtype=np.int32)
        for r, i in enumerate(part):
            q, s = shapes[i]
            mine = span(segments[i])
            query[r, :q], key[r, :s] = mine, keys[i]
            # Ancestors stand at smaller positions, so one comparison says both
            # "an ancestor" and "not later in the same segment".
            distance[r, :q, :s] = positions[mine][:, None] - positions[keys[i]][None, :]
            gather[mine] = offset + r * wide + np.arange(q)
        np.maximum(distance, -1, out=distance)
        buckets.append(
            Bucket(
                torch.from_numpy(query).to(device),
                torch.from_numpy(key).to(device),
                torch.from_numpy(distance).to(device),
            )
        )
        offset += len(part) * wide
    lengths = [s.length for s in segments]
    return Tree(
        buckets,
        torch.from_numpy(gather).to(device),
        torch.from_numpy(np.repeat(np.arange(len(segments)), lengths)).to(device),
        torch.from_numpy(np.repeat([s.parent for s in segments], lengths)).to(device),
        pack.positions_N,
    )


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, dropout: float, softcap: float
) -> Tensor:
    """Attention of [R, H, Q, D] over [R, H, S, D]; soft-capped scores have no fused kernel."""
    if not softcap:
        return scaled_dot_product_attention(q, k, v, mask, dropout, scale=scale)
    scores = torch.tanh(q @ k.transpose(-1, -2) * (scale / softcap)) * softcap
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).float().softmax(-1)
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
    outs: list[Tensor] = []
    for b in tree.buckets:
        q = q_NHD[b.query_RQ].transpose(1, 2)
        k = k_NHD[b.key_RS].transpose(1, 2)
        v = v_NHD[b.key_RS].transpose(1, 2)
        out = _attend(q, k, v, b.mask(window), scale, dropout, softcap)
        outs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outs).index_select(0, tree.gather_N)


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
