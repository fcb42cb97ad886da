"""Tree attention: each segment attends to its ancestors and, causally, to itself.

It is registered with transformers' attention interface under the name ``NAME``; the tree is passed
as the keyword argument ``tree`` of the model's forward.

On CPU it uses flash kernels (``kernels.flash_cpu``). On CUDA, FlexAttention takes the tree as a
block mask. What neither supports (a soft cap or a window on CPU, dropout) uses masked SDPA
(``kernels.masked``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trimtab.data.pack import Pack, Segment, ancestors
from trimtab.kernels.flash_cpu import FlashPlan, flash_tree_attention, make_flash_plan
from trimtab.kernels.masked import Buckets, make_buckets, masked_tree_attention

NAME = "trimtab_tree"


@dataclass
class Tree:
    """A pack's tree of segments; the plan of each attention implementation is built on first use."""

    segments: list[Segment]
    segment_N: Tensor
    """Segment of each token."""
    ancestors_DN: list[Tensor]
    """By level of the tree, the segment there that each token's segment continues, -1 for none."""
    positions_N: Tensor
    flex: dict[int, Any] = field(default_factory=dict[int, Any])
    """FlexAttention block masks by window."""

    @cached_property
    def buckets(self) -> Buckets:
        """Plan for masked SDPA."""
        return make_buckets(self.segments, self.positions_N)

    @cached_property
    def flash_plan(self) -> FlashPlan:
        """Plan for the CPU flash kernels."""
        return make_flash_plan(self.segments, self.positions_N.device)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return int(self.positions_N.max()) + 1


@lru_cache(1)
def make_tree(pack: Pack) -> Tree:
    """The tree of ``pack``, on its device.

    The last one is cached: policy, critic and reference process the same pack in turn.
    """
    device = pack.ids_N.device
    lengths = [s.length for s in pack.segments]

    def by_token(of_segments: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.repeat(of_segments, lengths)).to(device)

    return Tree(
        pack.segments,
        by_token(range(len(lengths))),
        [by_token(level) for level in ancestors(pack.segments)],
        pack.positions_N,
    )


def tree_mask(tree: Tree, window: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The tree as a FlexAttention ``mask_mod``."""
    segment, position = tree.segment_N, tree.positions_N

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = (segment[q] == segment[k]) & (q >= k)
        for ancestor in tree.ancestors_DN:
            seen = seen | (ancestor[q] == segment[k])
        return seen & (position[q] - position[k] < window) if window > 0 else seen

    return mask_mod


@lru_cache(1)
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def flex_tree_attention(
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
    """The attention function that transformers calls; q, k, v are [1, H, N, D]."""
    assert tree is not None, "tree attention was called without a tree"
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window, cap = sliding_window or 0, softcap or 0.0
    if query.is_cuda and not dropout:
        query, key = query.to(value.dtype), key.to(value.dtype)
        out = flex_tree_attention(query, key, value, tree, scale, window, cap, _compiled_flex())
        return out.transpose(1, 2).contiguous(), None
    # Under mixed precision rotated queries and keys are fp32, values are bfloat16.
    kind = value.dtype
    if query.device.type == "cpu" and kind == torch.bfloat16:
        # The kernels' backward takes three times as long in bfloat16 (LOG.md).
        kind = torch.float32
    q, k, v = (x[0].transpose(0, 1).to(kind) for x in (query, key, value))
    if q.device.type == "cpu" and not dropout and not cap and not 0 < window < tree.longest:
        return flash_tree_attention(q, k, v, tree.flash_plan, scale)[None].to(value.dtype), None
    out = masked_tree_attention(q, k, v, tree.buckets, scale, dropout, window, cap)[None]
    return out.to(value.dtype), None


def _no_mask(*_: Any, **__: Any) -> None:
    """Tells transformers to build no mask: the tree replaces it."""


@cache
def register() -> None:
    """Make ``NAME`` known to transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, tree_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
