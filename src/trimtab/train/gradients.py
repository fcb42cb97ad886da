"""The gradients of one optimiser step, whatever its packs and however many ranks compute it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from trimtab import ranks
from trimtab.data.pack import Output, Pack, packs
from trimtab.errors import UserError
from trimtab.models.shard import is_shard, sum_gradients
from trimtab.objectives.terms import Counts, Objective
from trimtab.train.deal import Bin, bins_of
from trimtab.types import Group

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Part:
    """One objective over some groups; an optimiser step may have several (PPO and a pretraining mix)."""

    groups: Sequence[Group]
    """What is trained on."""
    objective: Objective
    """The loss."""
    forward: Callable[[Pack], Output]
    """Runs the models on a pack."""
    share: bool = True
    """Whether prompts may be shared on these models."""
    weight: float = 1.0
    """Multiplies the whole loss."""
    prefix: str = ""
    """Put before the names of its metrics."""


@dataclass(frozen=True, slots=True)
class _Weighted:
    """A pack of an optimiser step; weight 0 on an idle rank."""

    pack: Pack
    weight: float
    index: int


class MemoryLimitError(UserError):
    """Not even the smallest pack of an optimiser step fits into memory."""


def out_of_memory(error: RuntimeError) -> bool:
    """Whether the error is a failed allocation, on CUDA or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class Gradients:
    """Accumulates the gradients of optimiser steps.

    Args:
        parameters: Those that are trained.
        budget: Tokens per forward; it is lowered where memory runs out.
        seed: Of dropout.
        dropout: Whether a module has any.
    """

    def __init__(self, parameters: Sequence[Tensor], budget: int, seed: int, dropout: bool) -> None:
        self.parameters = list(parameters)
        self.budget, self.seed, self.dropout = budget, seed, dropout
        self._pack: Pack | None = None

    def __call__(self, parts: Sequence[Part], step: int) -> dict[str, float]:
        """Accumulate the gradients of an optimiser step, in smaller packs if memory runs out.

        The counts are those of the step on all ranks, so the gradients depend neither on the packs nor on
        the ranks.

        Args:
            parts: What is trained on.
            step: Optimiser steps so far, for the random stream of dropout.

        Returns:
            The metrics, averaged over the step.

        Raises:
            MemoryLimitError: it does not fit with one prompt per pack.
        """
        here = ranks.current()
        work = [bins_of(part.groups, self.budget, part.share) for part in parts]
        packed = self._build(parts, work)
        all_counts: list[Counts] = []
        for part, part_packs in zip(parts, packed, strict=True):
            counts: Counts = {}
            for weighted in part_packs:
                for key, value in part.objective.counts(weighted.pack).items():
                    counts[key] = counts.get(key, 0.0) + weighted.weight * value
            all_counts.append(cast(Counts, here.sum(cast("dict[str, float]", counts))))
        while True:
            try:
                metrics = self._accumulate(parts, packed, all_counts, step)
                break
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                self._lower_budget(parts)
            # Outside the handler: its traceback holds the tensors of the pack that did not fit.
            self._clear()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            log.warning("out of memory: packs have at most %d tokens from now on", self.budget)
            packed = self._build(parts, work)
        if here.world > 1:
            sum_gradients(self.parameters, here)
            metrics = here.sum(metrics)
            self.budget = here.minimum(self.budget)
        return metrics

    def _lower_budget(self, parts: Sequence[Part]) -> None:
        """Halve the token budget after a step did not fit.

        Raises:
            MemoryLimitError: every pack is one prompt already, or weights are sharded: ranks then meet in
                every pack, and cannot retry apart.
        """
        if any(map(is_shard, self.parameters)) and self._pack is not None:
            names = ", ".join(g.id for g in self._pack.groups[:5])
            raise MemoryLimitError(
                f"rank {ranks.current().rank}: a pack of {self._pack.size} tokens (prompts {names}, …) "
                f"does not fit into memory; lower loop.token_budget, now {self.budget}, turn on "
                "model.gradient_checkpointing, or start more trainers"
            ) from None
        largest = max((g.cost for part in parts for g in part.groups), default=0)
        if self.budget <= largest:
            raise MemoryLimitError(
                f"a prompt with its completions of {largest} tokens does not fit into memory "
                "by itself; lower group_size or the length limits, turn on "
                "model.gradient_checkpointing, or take a smaller model"
            ) from None
        self.budget = max(largest, self.budget // 2)

    def _build(self, parts: Sequence[Part], work: Sequence[Sequence[Bin]]) -> list[list[_Weighted]]:
        """The packs of every part, on the CPU."""
        return [
            [
                _Weighted(pack, b.weight, b.index + i)
                for b in bins
                for i, pack in enumerate(packs(b.groups, self.budget, share=part.share))
            ]
            for part, bins in zip(parts, work, strict=True)
        ]

    def _accumulate(
        self,
        parts: Sequence[Part],
        packed: Sequence[Sequence[_Weighted]],
        all_counts: Sequence[Counts],
        step: int,
    ) -> dict[str, float]:
        """Run every pack of this rank forward and backward; its share of the step's metrics.

        A loss term or metric is the sum over all packs, divided by the step's count of its unit.
        """
        device = self.parameters[0].device
        self._clear()
        metrics: dict[str, float] = {}
        for place, (part, part_packs, counts) in enumerate(
            zip(parts, packed, all_counts, strict=True)
        ):
            sums: dict[str, Tensor] = {}
            for weighted in part_packs:
                pack = self._pack = weighted.pack.to(device)
                with self._dropout_of((step, place, weighted.index)):
                    loss = part.objective(part.forward(pack), pack)
                total = torch.zeros((), device=device)
                shares: dict[str, Tensor] = {}
                for name, term in loss.terms.items():
                    scaled = term.sum / max(counts[term.per], 1.0)
                    total = total + part.weight * term.coef * scaled
                    shares[name] = scaled.detach()
                for name, (value, per) in loss.metrics.items():
                    shares[name] = value / max(counts[per], 1.0)
                if weighted.weight:
                    for name, value in shares.items():
                        key = part.prefix + name
                        sums[key] = sums.get(key, torch.zeros((), device=device)) + value
                else:
                    total = total * 0.0
                if total.requires_grad:
                    total.backward()
            metrics.update({k: float(v) for k, v in sums.items()})
        return metrics

    def _clear(self) -> None:
        for p in self.parameters:
            p.grad = None

    def _dropout_of(self, key: tuple[int, ...]) -> contextlib.AbstractContextManager[Any]:
        """The random stream of a pack's dropout, which depends on no other pack and on no rank."""
        return _seeded((self.seed, *key)) if self.dropout else contextlib.nullcontext()


@contextlib.contextmanager
def _seeded(key: tuple[int, ...]) -> Generator[None]:
    """A context in which torch's generators start from ``key``; outside they are as before."""
    with torch.random.fork_rng():
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
        yield
