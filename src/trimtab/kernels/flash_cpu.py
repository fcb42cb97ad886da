"""Tree attention on a CPU with torch's flash kernels; keys and values of a prompt are stored once.

Each segment attends to itself with one causal call. Then, level by level of the tree, all that
continues a segment attends to it with one more call: completions to their prompt, prompts and
completions to the system prompt that they share. The results are combined by their log-sum-exp, as
flash attention combines blocks of keys (arXiv 2205.14135). The backward needs only the combined
output and log-sum-exp, so it has as many calls. Nothing is copied per completion, so the cost of a
prompt does not depend on the number of its completions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trimtab.data.pack import Segment, ancestors
from trimtab.kernels.masked import bucket_by_shape, token_span

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_PADDED_LSE = 1e30
"""Log-sum-exp of a padded query: every attention weight of its row is then 0."""


@dataclass(slots=True)
class PaddedRows:
    """Token spans as padded rows, bucket by bucket; each token occurs at most once."""

    shapes: list[tuple[int, int]]
    """[R, L] of each bucket."""
    token_M: Tensor
    """Pack index of each row entry, buckets concatenated; 0 in padding."""
    in_order: bool
    """Whether the entries are exactly the pack's tokens in order, so that no gather is needed."""
    padding_M: Tensor | None
    """True in padding; None without padding."""
    place_E: Tensor
    """Row entry of each token that is in a row."""
    token_E: Tensor
    """Pack index of these tokens, ascending."""

    def gather(self, x_N: Tensor, fill: float | None = None) -> list[Tensor]:
        """Rows [R, L, ...] per bucket; padding holds any value, or ``fill``."""
        padded_rows = x_N if self.in_order else x_N.index_select(0, self.token_M)
        if fill is not None and self.padding_M is not None:
            padded_rows[self.padding_M] = fill
        sizes = [r * n for r, n in self.shapes]
        parts = padded_rows.split(sizes)
        return [x.unflatten(0, s) for x, s in zip(parts, self.shapes, strict=True)]

    def scatter(self, parts: list[Tensor]) -> Tensor:
        """Values [E, ...] per token from rows [R, L, ...] per bucket."""
        flat = [x.flatten(0, 1) for x in parts]
        joined = flat[0] if len(flat) == 1 else torch.cat(flat)
        return joined if self.in_order else joined.index_select(0, self.place_E)


def _padded_rows(parts: list[list[np.ndarray]], size: int, device: torch.device) -> PaddedRows:
    shapes: list[tuple[int, int]] = []
    tokens: list[np.ndarray] = []
    padding: list[np.ndarray] = []
    for part in parts:
        wide = max(len(x) for x in part)
        token = np.zeros((len(part), wide), dtype=np.int64)
        empty = np.ones((len(part), wide), dtype=np.bool_)
        for r, x in enumerate(part):
            token[r, : len(x)], empty[r, : len(x)] = x, False
        shapes.append((len(part), wide))
        tokens.append(token.ravel())
        padding.append(empty.ravel())
    token_M, empty = np.concatenate(tokens), np.concatenate(padding)
    place = np.flatnonzero(~empty)
    place = place[np.argsort(token_M[place], kind="stable")]

    def put(x: np.ndarray) -> Tensor:
        return torch.from_numpy(x).to(device)

    padded = bool(empty.any())
    in_order = not padded and len(token_M) == size and bool((token_M == np.arange(size)).all())
    return PaddedRows(
        shapes,
        put(token_M),
        in_order,
        put(empty) if padded else None,
        put(place),
        put(token_M[place]),
    )


@dataclass(slots=True)
class LevelPlan:
    """Attention to the segments of one level of the tree, by the tokens that continue them."""

    queries: PaddedRows
    keys: PaddedRows
    masks: list[Tensor | None]
    """Per bucket [R, 1, 1, P]: -inf on padded keys; None without padding."""


@dataclass(slots=True)
class FlashPlan:
    """The calls that compute a pack's attention: segments to themselves, and to each level above them."""

    own: PaddedRows
    levels: list[LevelPlan]


def make_flash_plan(segments: Sequence[Segment], device: torch.device) -> FlashPlan:
    """Plan the attention calls of a pack's segments."""
    size = sum(s.length for s in segments)
    token_spans = [token_span(s) for s in segments]
    own_rows = [
        [token_spans[i] for i in part]
        for part in bucket_by_shape([(len(x), len(x)) for x in token_spans])
    ]
    levels = [_plan_level(level, token_spans, size, device) for level in ancestors(segments)]
    return FlashPlan(_padded_rows(own_rows, size, device), levels)


def _plan_level(
    ancestor_of: Sequence[int], token_spans: Sequence[np.ndarray], size: int, device: torch.device
) -> LevelPlan:
    """The calls to one level.

    Args:
        ancestor_of: The segment there that each segment continues, -1 for none.
        token_spans: Tokens of each segment.
        size: Tokens of the pack.
        device: Of the pack.
    """
    below: dict[int, list[np.ndarray]] = {}
    for ancestor, x in zip(ancestor_of, token_spans, strict=True):
        if ancestor >= 0:
            below.setdefault(ancestor, []).append(x)
    pairs = [(np.concatenate(spans), token_spans[p]) for p, spans in below.items()]
    parts = bucket_by_shape([(len(q), len(p)) for q, p in pairs])
    queries = _padded_rows([[pairs[i][0] for i in part] for part in parts], size, device)
    keys = _padded_rows([[pairs[i][1] for i in part] for part in parts], size, device)
    masks: list[Tensor | None] = [None] * len(parts)
    if keys.padding_M is not None:
        sizes = [r * n for r, n in keys.shapes]
        for b, (hide, shape) in enumerate(
            zip(keys.padding_M.split(sizes), keys.shapes, strict=True)
        ):
            if bool(hide.any()):
                mask = torch.zeros(shape, device=device).masked_fill_(
                    hide.view(shape), float("-inf")
                )
                masks[b] = mask[:, None, None]
    return LevelPlan(queries, keys, masks)


def _swap_heads(x_RLHD: Tensor) -> Tensor:
    return x_RLHD.transpose(1, 2)


class _Flash(torch.autograd.Function):
    """Output [N, H, D] of queries, keys and values [N, H, D]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: FlashPlan, scale: float) -> Tensor:
        outs: list[Tensor] = []
        norms: list[Tensor] = []
        for rows in zip(*(plan.own.gather(x) for x in (q, k, v)), strict=True):
            out, norm = _forward(*map(_swap_heads, rows), 0.0, True, scale=scale)
            outs.append(_swap_heads(out))
            norms.append(norm.transpose(1, 2))
        # Every token is in exactly one segment, so this is in pack order.
        o, lse = plan.own.scatter(outs), plan.own.scatter(norms)
        for level in plan.levels:
            outs, norms = [], []
            for qs, ks, vs, mask in zip(
                level.queries.gather(q),
                level.keys.gather(k),
                level.keys.gather(v),
                level.masks,
                strict=True,
            ):
                mask = None if mask is None else mask.to(q.dtype)
                out, norm = _forward(
                    *map(_swap_heads, (qs, ks, vs)), 0.0, False, attn_mask=mask, scale=scale
                )
                outs.append(_swap_heads(out))
                norms.append(norm.transpose(1, 2))
            at = level.queries.token_E
            above_out, above_lse = level.queries.scatter(outs), level.queries.scatter(norms)
            own_out, own_lse = o.index_select(0, at), lse.index_select(0, at)
            lse.index_copy_(0, at, torch.logaddexp(own_lse, above_lse))
            # exp(a) / (exp(a) + exp(b)) is the weight of the part above.
            share = torch.sigmoid(above_lse - own_lse)[..., None].to(o.dtype)
            o.index_copy_(0, at, torch.lerp(own_out, above_out, share))
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.plan, ctx.scale = plan, scale
        return o

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch's decorator renames ctx
        ctx: Any, *grad_outputs: Any
    ) -> Any:
        q, k, v, o, lse = ctx.saved_tensors
        plan: FlashPlan = ctx.plan
        (g,) = grad_outputs
        own = plan.own
        gradients: list[tuple[Tensor, ...]] = []
        for gs, qs, ks, vs, os, norm in zip(
            own.gather(g, 0.0),
            *(own.gather(x) for x in (q, k, v, o)),
            own.gather(lse, _PADDED_LSE),
            strict=True,
        ):
            grads = _backward(
                *map(_swap_heads, (gs, qs, ks, vs, os, norm)), 0.0, True, scale=ctx.scale
            )
            gradients.append(tuple(map(_swap_heads, grads)))
        dq, dk, dv = (own.scatter([m[i] for m in gradients]) for i in range(3))
        for level in plan.levels:
            gradients = []
            for gs, qs, ks, vs, os, norm, mask in zip(
                level.queries.gather(g, 0.0),
                level.queries.gather(q),
                level.keys.gather(k),
                level.keys.gather(v),
                level.queries.gather(o),
                level.queries.gather(lse, _PADDED_LSE),
                level.masks,
                strict=True,
            ):
                mask = None if mask is None else mask.to(q.dtype)
                grads = _backward(
                    *map(_swap_heads, (gs, qs, ks, vs, os, norm)),
                    0.0,
                    False,
                    attn_mask=mask,
                    scale=ctx.scale,
                )
                gradients.append(tuple(map(_swap_heads, grads)))
            for d, rows, i in ((dq, level.queries, 0), (dk, level.keys, 1), (dv, level.keys, 2)):
                d.index_add_(0, rows.token_E, rows.scatter([m[i] for m in gradients]))
        return dq, dk, dv, None, None


def flash_tree_attention(
    q_NHD: Tensor, k_NHD: Tensor, v_NHD: Tensor, plan: FlashPlan, scale: float
) -> Tensor:
    """Tree attention [N, H, D]; keys and values may have fewer heads (grouped-query)."""
    repeat = q_NHD.shape[1] // k_NHD.shape[1]
    if repeat > 1:
        k_NHD = k_NHD.repeat_interleave(repeat, 1)
        v_NHD = v_NHD.repeat_interleave(repeat, 1)
    out: Any = _Flash.apply(q_NHD, k_NHD, v_NHD, plan, scale)
    return out
