"""Tree attention with public torch operations: any window, soft cap or dropout, on any device.

Segments of similar shape form a bucket, and each bucket is one masked SDPA call: no dense mask over
the pack, no loop over completions. ``kernels.flash_cpu`` is faster where it applies.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from trimtab.data.pack import Segment

MAX_PADDING = 1.15
"""Largest ratio of scores computed to scores needed in a bucket."""


@dataclass(slots=True)
class Bucket:
    """R segments of similar shape, padded to Q queries and S keys."""

    query_RQ: Tensor
    """Pack index of each query; 0 in padding."""
    key_RS: Tensor
    """Pack index of each key; 0 in padding."""
    distance_RQS: Tensor
    """Query position minus key position; -1 where attention is not allowed."""
    masks: dict[int, Tensor] = field(default_factory=dict[int, Tensor])

    def mask(self, window: int) -> Tensor:
        """[R, 1, Q, S], True where attended; ``window`` 0 means unlimited."""
        if window not in self.masks:
            seen = self.distance_RQS >= 0
            if window > 0:
                seen &= self.distance_RQS < window
            # A padded query attends to everything: a row without keys would be NaN.
            seen |= ~(self.distance_RQS >= 0).any(-1, keepdim=True)
            self.masks[window] = seen[:, None]
        return self.masks[window]


def bucket_by_shape(shapes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Indices grouped into buckets of similar shape; ``shapes`` are (queries, keys)."""
    order = sorted(range(len(shapes)), key=lambda i: (-shapes[i][1], -shapes[i][0], i))
    parts: list[list[int]] = []
    max_queries = max_keys = computed = 0
    for i in order:
        q, s = shapes[i]
        grown = (len(parts[-1]) + 1) * max(max_queries, q) * max(max_keys, s) if parts else 0
        if not parts or grown > MAX_PADDING * (computed + q * s):
            parts.append([])
            max_queries = max_keys = computed = 0
        parts[-1].append(i)
        max_queries, max_keys, computed = max(max_queries, q), max(max_keys, s), computed + q * s
    return parts


@dataclass(slots=True)
class Buckets:
    """All buckets of a pack."""

    buckets: list[Bucket]
    gather_N: Tensor
    """Index of each pack token's output in the concatenated outputs of the buckets."""


def token_span(s: Segment) -> np.ndarray:
    """Pack indices of a segment."""
    return np.arange(s.start, s.start + s.length)


def make_buckets(segments: Sequence[Segment], positions_N: Tensor) -> Buckets:
    """The buckets of a pack's segments, on the device of its positions."""
    device = positions_N.device
    positions = positions_N.cpu().numpy()
    keys: list[np.ndarray] = []
    for s in segments:
        keys.append(
            token_span(s) if s.parent < 0 else np.concatenate([keys[s.parent], token_span(s)])
        )
    shapes = [(s.length, len(k)) for s, k in zip(segments, keys, strict=True)]
    buckets: list[Bucket] = []
    gather = np.zeros(len(positions), dtype=np.int64)
    offset = 0
    for part in bucket_by_shape(shapes):
        max_queries = max(shapes[i][0] for i in part)
        max_keys = max(shapes[i][1] for i in part)
        query = np.zeros((len(part), max_queries), dtype=np.int64)
        key = np.zeros((len(part), max_keys), dtype=np.int64)
        distance = np.full((len(part), max_queries, max_keys), -1, dtype=np.int32)
        for r, i in enumerate(part):
            q, s = shapes[i]
            own = token_span(segments[i])
            query[r, :q], key[r, :s] = own, keys[i]
            # Keys are ancestors or the same segment, so a non-negative distance means
            # "an ancestor, or not later in the same segment".
            distance[r, :q, :s] = positions[own][:, None] - positions[keys[i]][None, :]
            gather[own] = offset + r * max_queries + np.arange(q)
        np.maximum(distance, -1, out=distance)
        buckets.append(
            Bucket(
                torch.from_numpy(query).to(device),
                torch.from_numpy(key).to(device),
                torch.from_numpy(distance).to(device),
            )
        )
        offset += len(part) * max_queries
    return Buckets(buckets, torch.from_numpy(gather).to(device))


def _masked_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, dropout: float, softcap: float
) -> Tensor:
    """Attention of [R, H, Q, D] over [R, H, S, D]; soft-capped scores have no fused kernel."""
    if not softcap:
        return scaled_dot_product_attention(q, k, v, mask, dropout, scale=scale)
    scores = torch.tanh(q @ k.transpose(-1, -2) * (scale / softcap)) * softcap
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).float().softmax(-1)
    return torch.dropout(weights.to(q.dtype), dropout, dropout > 0) @ v


def masked_tree_attention(
    q_NHD: Tensor,
    k_NHD: Tensor,
    v_NHD: Tensor,
    plan: Buckets,
    scale: float,
    dropout: float,
    window: int,
    softcap: float,
) -> Tensor:
    """Tree attention [N, H, D]; keys and values may have fewer heads (grouped-query)."""
    repeat = q_NHD.shape[1] // k_NHD.shape[1]
    if repeat > 1:
        k_NHD = k_NHD.repeat_interleave(repeat, 1)
        v_NHD = v_NHD.repeat_interleave(repeat, 1)
    outs: list[Tensor] = []
    for b in plan.buckets:
        q = q_NHD[b.query_RQ].transpose(1, 2)
        k = k_NHD[b.key_RS].transpose(1, 2)
        v = v_NHD[b.key_RS].transpose(1, 2)
        out = _masked_attention(q, k, v, b.mask(window), scale, dropout, softcap)
        outs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outs).index_select(0, plan.gather_N)
