"""What a loss returns: sums, and the count that divides each.

A loss never divides by a count of its own pack. It names the count, and the loop divides by that
count over the whole optimiser step, so the result does not depend on micro-batches or packing.
"""

from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from trimtab.data.pack import Output, Pack

Per = Literal["tokens", "completions", "groups", "chosen", "rejected"]
"""Trained tokens; completions with at least one; groups that carry a training signal; completions
labelled good; completions labelled bad."""

Counts = dict[Per, float]

Metrics = dict[str, tuple[Tensor, Per]]
"""Detached sums by name, and the count that divides each."""

Aggregation = Literal[
    "token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"
]


@dataclass(slots=True)
class Term:
    """One summand of a loss: ``coef * sum / counts[per]``."""

    sum: Tensor
    """Scalar, attached to the graph."""
    per: Per
    """Which count divides it."""
    coef: float = 1.0
    """Its weight."""


@dataclass(slots=True)
class Loss:
    """The terms of a loss and the metrics that go with it."""

    terms: dict[str, Term]
    """By name; logged before ``coef`` is applied."""
    metrics: Metrics = field(default_factory=dict[str, tuple[Tensor, Per]])


class Objective(Protocol):
    """What the training loop needs of a loss."""

    def counts(self, pack: Pack) -> Counts:
        """What this pack adds to the counts of the optimiser step, without a forward."""
        ...

    def __call__(self, out: Output, pack: Pack) -> Loss:
        """Sums, and what divides them."""
        ...


def default_counts(pack: Pack) -> Counts:
    """Tokens, completions with a trained token, groups."""
    return {
        "tokens": float(pack.trained_B.sum()),
        "completions": float((pack.trained_B > 0).sum()),
        "groups": float(len(pack.groups)),
    }


def aggregate(
    loss_C: Tensor, pack: Pack, mode: Aggregation, max_length: int = 0, coef: float = 1.0
) -> Term:
    """Token losses [C] as one term (ALGORITHMS section 9, "Aggregation").

    Args:
        max_length: The constant of "seq-mean-token-sum-norm".
    """
    if mode == "token-mean":
        return Term(loss_C.sum(), "tokens", coef)
    if mode == "seq-mean-token-mean":
        weight = 1.0 / pack.trained_B.clamp(min=1.0)
        return Term((loss_C * weight[pack.owner_C]).sum(), "completions", coef)
    if mode == "seq-mean-token-sum":
        return Term(loss_C.sum(), "completions", coef)
    assert max_length > 0, "seq-mean-token-sum-norm needs max_length"
    return Term(loss_C.sum() / max_length, "completions", coef)


def detached(x: Tensor) -> Tensor:
    """The sum of ``x``, off the graph, for a metric."""
    return x.detach().float().sum()


def zero_like(x: Tensor) -> Tensor:
    """A zero attached to the graph of ``x``, so that an empty pack still has a backward."""
    return torch.where(torch.isfinite(x), x, torch.zeros_like(x)).sum() * 0.0
