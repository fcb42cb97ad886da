"""Tree attention by public operations alone: any window, cap or dropout, on any device.

Segments of like shape are gathered into buckets and go through one masked SDPA call each: no dense
mask over the pack, no loop over completions. ``models.flash`` is faster where it serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from trimtab.data.pack import Segment

WASTE = 1.15
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


def divide(shapes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Indices of like shapes together. ``shapes`` are (queries, keys)."""
    order = sorted(range(len(shapes)), key=lambda i: (-shapes[i][1], -shapes[i][0], i))
    parts: list[list[int]] = []
    wide = deep = needed = 0
    for i in order:
        q, s = shapes[i]
        grown = (len(parts[-1]) + 1) * max(wide, q) * max(deep, s) if parts else 0
        if not parts or grown > WASTE * (needed + q * s):
            parts.append([])
            wide = deep = needed = 0
        parts[-1].append(i)
        wide, deep, needed = max(wide, q), max(deep, s), needed + q * s
    return parts


@dataclass(slots=True)
class Buckets:
    """All buckets of a pack."""

    buckets: list[Bucket]
    gather_N: Tensor
    """Where each pack token's output stands in the buckets' concatenated outputs."""


def span(s: Segment) -> np.ndarray:
    """Pack indices of a segment."""
    return np.arange(s.start, s.start + s.length)


def make_buckets(segments: Sequence[Segment], positions_N: Tensor) -> Buckets:
    """The buckets of a pack's segments, on the device of its positions."""
    device = positions_N.device
    positions = positions_N.cpu().numpy()
    keys: list[np.ndarray] = []
    for s in segments:
        keys.append(span(s) if s.parent < 0 else np.concatenate([keys[s.parent], span(s)]))
    shapes = [(s.length, len(k)) for s, k in zip(segments, keys, strict=True)]
    buckets: list[Bucket] = []
    gather = np.zeros(len(positions), dtype=np.int64)
    offset = 0
    for part in divide(shapes):
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
    return Buckets(buckets, torch.from_numpy(gather).to(device))


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
    plan: Buckets,
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
    for b in plan.buckets:
        q = q_NHD[b.query_RQ].transpose(1, 2)
        k = k_NHD[b.key_RS].transpose(1, 2)
        v = v_NHD[b.key_RS].transpose(1, 2)
        out = _attend(q, k, v, b.mask(window), scale, dropout, softcap)
        outs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outs).index_select(0, plan.gather_N)
