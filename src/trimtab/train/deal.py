"""Packs are planned once for all ranks, then dealt to them.

Every rank plans alike, so a pack is the same however many ranks there are, and only the order of sums
depends on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab import ranks
from trimtab.data.pack import Pack, build, packs, plan, scatter
from trimtab.types import Group


@dataclass(frozen=True, slots=True)
class Bin:
    """Groups that a rank computes as one pack, or as several where memory is short."""

    groups: Sequence[Group]
    weight: float
    """1, or 0 for a rank that is idle in this round: it repeats a pack, so that collectives inside the
    model meet on every rank."""
    index: int
    """Place in the plan of the whole step."""


def deal(bins: Sequence[Sequence[Group]], share: bool) -> list[Bin]:
    """This rank's bins: the largest first, round by round, the same number on every rank."""
    here = ranks.current()
    sizes = [build_size(groups, share) for groups in bins]
    order = sorted(range(len(bins)), key=lambda i: (-sizes[i], i))
    rounds = -(-len(bins) // here.world)
    places = [r * here.world + here.rank for r in range(rounds)]
    return [
        Bin(bins[order[p]], 1.0, order[p])
        if p < len(bins)
        else Bin(bins[order[-1]], 0.0, order[-1])
        for p in places
    ]


def build_size(groups: Sequence[Group], share: bool) -> int:
    """Tokens that a forward of ``groups`` computes."""
    return sum(
        g.cost if share else g.cost + len(g.prompt) * max(0, len(g.completions) - 1) for g in groups
    )


def bins_of(groups: Sequence[Group], budget: int, share: bool) -> list[Bin]:
    """This rank's part of ``groups``, whose packs have at most ``budget`` tokens."""
    if ranks.current().world == 1 or not groups:
        return [Bin(groups, 1.0, 0)]
    return deal(plan(groups, budget, share=share), share)


def outputs(
    groups: Sequence[Group],
    budget: int,
    share: bool,
    device: torch.device,
    compute: Callable[[Pack], Mapping[str, Tensor | None]],
) -> Iterator[tuple[Pack, dict[str, Tensor]]]:
    """What ``compute`` returns for every pack of ``groups``, on every rank.

    Args:
        groups: What is computed.
        budget: Tokens per pack.
        share: Whether prompts may be shared.
        device: Where the packs are computed.
        compute: Tensors [C] or [B] by name; those that are None are left out.

    Yields:
        Each pack in the order of the plan, on the CPU, with its tensors on the CPU. With one process
        both stay on ``device``.
    """
    here = ranks.current()
    if here.world == 1:
        for pack in packs(groups, budget, share=share):
            on_device = pack.to(device)
            yield on_device, {k: v for k, v in compute(on_device).items() if v is not None}
        return
    bins = plan(groups, budget, share=share)
    own = deal(bins, share)
    rows = [
        {
            k: v.detach().float().cpu().numpy()
            for k, v in compute(build(b.groups, share=share).to(device)).items()
            if v is not None
        }
        for b in own
    ]
    counted = [(b.index, row) for b, row in zip(own, rows, strict=True) if b.weight]
    indices = here.gather([index for index, _ in counted])
    arrays = here.gather_arrays([row for _, row in counted])
    by_index = {
        index: row
        for rank_indices, rank_rows in zip(indices, arrays, strict=True)
        for index, row in zip(rank_indices, rank_rows, strict=True)
    }
    for index, part in enumerate(bins):
        columns = {k: torch.from_numpy(v) for k, v in by_index[index].items()}
        yield build(part, share=share), columns


ENTROPY = "entropy"
"""The column that ``annotate`` averages and does not keep."""


def annotate(
    groups: Sequence[Group],
    budget: int,
    share: bool,
    device: torch.device,
    compute: Callable[[Pack], Mapping[str, Tensor | None]],
) -> float:
    """Put what ``compute`` returns on the tokens of every completion, as ``outputs``.

    Returns:
        The mean of the column ``ENTROPY``; 0 without it.
    """
    entropy = count = 0.0
    for pack, columns in outputs(groups, budget, share, device, compute):
        entropy_C = columns.pop(ENTROPY, None)
        if entropy_C is not None:
            entropy += float(entropy_C.sum())
            count += len(entropy_C)
        scatter(pack, {k: v.cpu().numpy() for k, v in columns.items()})
    return entropy / max(1.0, count)
