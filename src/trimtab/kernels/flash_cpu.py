"""Tree attention on a CPU by torch's flash kernels, each token's keys and values held once.

A segment attends to itself in a square: causal, without a mask. All completions of a prompt attend
to it in one rectangle. The two are put together by their normalisers, as flash attention puts blocks
of keys together (arXiv 2205.14135); and since its backward needs no more than the output and the
normaliser of the whole row, each part's gradients are one call as well. Nothing is copied for each
completion, forward or backward, so a prompt costs the same however many completions it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trimtab.data.pack import Segment
from trimtab.kernels.masked import divide, span

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_FAR = 1e30
"""Normaliser of a padded query: every weight of its row is then 0."""


@dataclass(slots=True)
class Rows:
    """Runs of tokens as padded rows, bucket after bucket; each token at most once."""

    shapes: list[tuple[int, int]]
    """[R, L] of each bucket."""
    token_M: Tensor
    """Pack index of each place, buckets end to end; 0 in padding."""
    whole: bool
    """Whether the places are the pack's tokens in their order, as when all are of one length."""
    padding_M: Tensor | None
    """Which places are padding; None where there are none."""
    place_E: Tensor
    """Where each token stands that is in a row."""
    token_E: Tensor
    """Which tokens those are, in the order of the pack."""

    def spread(self, x_N: Tensor, fill: float | None = None) -> list[Tensor]:
        """Rows [R, L, ...] of every bucket, padding as it falls or ``fill``."""
        made = x_N if self.whole else x_N.index_select(0, self.token_M)
        if fill is not None and self.padding_M is not None:
            made[self.padding_M] = fill
        sizes = [r * n for r, n in self.shapes]
        parts = made.split(sizes)
        return [x.unflatten(0, s) for x, s in zip(parts, self.shapes, strict=True)]

    def collect(self, parts: list[Tensor]) -> Tensor:
        """[E, ...] of rows [R, L, ...]."""
        flat = [x.flatten(0, 1) for x in parts]
        joined = flat[0] if len(flat) == 1 else torch.cat(flat)
        return joined if self.whole else joined.index_select(0, self.place_E)


def _rows(parts: list[list[np.ndarray]], size: int, device: torch.device) -> Rows:
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
    whole = not padded and len(token_M) == size and bool((token_M == np.arange(size)).all())
    return Rows(
        shapes, put(token_M), whole, put(empty) if padded else None, put(place), put(token_M[place])
    )


@dataclass(slots=True)
class Far:
    """Prompts and the tokens of their completions."""

    queries: Rows
    prompts: Rows
    masks: list[Tensor | None]
    """Of each bucket [R, 1, 1, P]: -inf on padded keys."""


@dataclass(slots=True)
class Squares:
    """A pack's attention as squares and rectangles."""

    near: Rows
    far: Far | None


def make_squares(segments: Sequence[Segment], device: torch.device) -> Squares:
    """The plan of a pack's segments."""
    size = sum(s.length for s in segments)
    whole = [span(s) for s in segments]
    near = [[whole[i] for i in part] for part in divide([(len(x), len(x)) for x in whole])]
    below: dict[int, list[np.ndarray]] = {}
    for s, x in zip(segments, whole, strict=True):
        if s.parent >= 0:
            below.setdefault(s.parent, []).append(x)
    if not below:
        return Squares(_rows(near, size, device), None)
    pairs = [(np.concatenate(children), whole[p]) for p, children in below.items()]
    parts = divide([(len(q), len(p)) for q, p in pairs])
    queries = _rows([[pairs[i][0] for i in part] for part in parts], size, device)
    prompts = _rows([[pairs[i][1] for i in part] for part in parts], size, device)
    masks: list[Tensor | None] = [None] * len(parts)
    if prompts.padding_M is not None:
        sizes = [r * n for r, n in prompts.shapes]
        for b, (hide, shape) in enumerate(
            zip(prompts.padding_M.split(sizes), prompts.shapes, strict=True)
        ):
            if bool(hide.any()):
                mask = torch.zeros(shape, device=device).masked_fill_(
                    hide.view(shape), float("-inf")
                )
                masks[b] = mask[:, None, None]
    return Squares(_rows(near, size, device), Far(queries, prompts, masks))


def _heads(x_RLHD: Tensor) -> Tensor:
    return x_RLHD.transpose(1, 2)


class _Flash(torch.autograd.Function):
    """Output [N, H, D] of queries, keys and values [N, H, D]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: Squares, scale: float) -> Tensor:
        outs: list[Tensor] = []
        norms: list[Tensor] = []
        for rows in zip(*(plan.near.spread(x) for x in (q, k, v)), strict=True):
            out, norm = _forward(*map(_heads, rows), 0.0, True, scale=scale)
            outs.append(_heads(out))
            norms.append(norm.transpose(1, 2))
        # Every token is in one square, in the order of the pack.
        o, lse = plan.near.collect(outs), plan.near.collect(norms)
        if plan.far is not None:
            far = plan.far
            outs, norms = [], []
            for qs, ks, vs, mask in zip(
                far.queries.spread(q), far.prompts.spread(k), far.prompts.spread(v), far.masks,
                strict=True,
            ):  # fmt: skip
                mask = None if mask is None else mask.to(q.dtype)
                out, norm = _forward(
                    *map(_heads, (qs, ks, vs)), 0.0, False, attn_mask=mask, scale=scale
                )
                outs.append(_heads(out))
                norms.append(norm.transpose(1, 2))
            at = far.queries.token_E
            there, its = far.queries.collect(outs), far.queries.collect(norms)
            here, own = o.index_select(0, at), lse.index_select(0, at)
            lse.index_copy_(0, at, torch.logaddexp(own, its))
            # exp(a) / (exp(a) + exp(b)) is the share of the prompt.
            share = torch.sigmoid(its - own)[..., None].to(o.dtype)
            o.index_copy_(0, at, torch.lerp(here, there, share))
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.plan, ctx.scale = plan, scale
        return o

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch's decorator renames ctx
        ctx: Any, *grad_outputs: Any
    ) -> Any:
        q, k, v, o, lse = ctx.saved_tensors
        plan: Squares = ctx.plan
        (g,) = grad_outputs
        near = plan.near
        made: list[tuple[Tensor, ...]] = []
        for gs, qs, ks, vs, os, norm in zip(
            near.spread(g, 0.0), *(near.spread(x) for x in (q, k, v, o)), near.spread(lse, _FAR),
            strict=True,
        ):  # fmt: skip
            grads = _backward(*map(_heads, (gs, qs, ks, vs, os, norm)), 0.0, True, scale=ctx.scale)
            made.append(tuple(map(_heads, grads)))
        dq, dk, dv = (near.collect([m[i] for m in made]) for i in range(3))
        if plan.far is not None:
            far, made = plan.far, []
            for gs, qs, ks, vs, os, norm, mask in zip(
                far.queries.spread(g, 0.0), far.queries.spread(q), far.prompts.spread(k),
                far.prompts.spread(v), far.queries.spread(o), far.queries.spread(lse, _FAR), far.masks,
                strict=True,
            ):  # fmt: skip
                mask = None if mask is None else mask.to(q.dtype)
                grads = _backward(
                    *map(_heads, (gs, qs, ks, vs, os, norm)), 0.0, False, attn_mask=mask,
                    scale=ctx.scale,
                )  # fmt: skip
                made.append(tuple(map(_heads, grads)))
            for d, rows, i in ((dq, far.queries, 0), (dk, far.prompts, 1), (dv, far.prompts, 2)):
                d.index_add_(0, rows.token_E, rows.collect([m[i] for m in made]))
        return dq, dk, dv, None, None


def flash(q_NHD: Tensor, k_NHD: Tensor, v_NHD: Tensor, plan: Squares, scale: float) -> Tensor:
    """Tree attention [N, H, D]. Keys and values may have fewer heads (grouped)."""
    repeat = q_NHD.shape[1] // k_NHD.shape[1]
    if repeat > 1:
        k_NHD = k_NHD.repeat_interleave(repeat, 1)
        v_NHD = v_NHD.repeat_interleave(repeat, 1)
    made: Any = _Flash.apply(q_NHD, k_NHD, v_NHD, plan, scale)
    return made
