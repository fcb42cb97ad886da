"""Base of the direct preference methods: the pairs of a pack, sums of log-probs, loss and metrics."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from trimtab.config import Kind
from trimtab.data.pack import Output, Pack
from trimtab.objectives.bradley_terry import pair_indices
from trimtab.objectives.tensors import segment_sum
from trimtab.objectives.terms import Counts, Loss, Metrics, Objective, Term, detached, zero_like
from trimtab.types import Group


@dataclass(slots=True)
class Pairs:
    """P pairs of a chosen (w) and a rejected (l) completion; sums over trained tokens, nats."""

    W_P: Tensor
    """Log-prob of the chosen completion."""
    L_P: Tensor
    """Log-prob of the rejected completion."""
    a_P: Tensor
    """W minus the reference's; W itself without a reference."""
    b_P: Tensor
    """L minus the reference's; L itself without a reference."""
    nw_P: Tensor
    """Trained tokens of the chosen completion."""
    nl_P: Tensor
    """Trained tokens of the rejected completion."""


class PackPairs(NamedTuple):
    """The pairs of a pack and where they come from."""

    pairs: Pairs
    share_P: Tensor
    """Weight of each pair: one over the number of pairs of its prompt."""
    group_P: list[int]
    """Index of each pair's group."""
    chosen_P: Tensor
    """Index of the chosen completion in the pack."""
    rejected_P: Tensor
    """Index of the rejected completion in the pack."""


class Direct(Kind):
    """A direct preference method: the policy's log-probs are implicit rewards.

    The methods on pairs derive from ``PairLoss``; KTO has a loss of its own. Each prompt counts once: the mean over its comparable pairs. Ties are left out, and so are
    completions without a rank or without a trained token. The reference's log-probs are the tokens'
    "ref_logp".
    """

    usual: ClassVar[str] = "dpo"

    rpo_alpha: float = Field(default=0.0, ge=0.0)
    """Weight of RPO's -W/n_w (published: 1)."""
    reference_free: bool = False
    """Train without a reference: a = W, b = L."""
    without: ClassVar[bool] = False
    """Whether the method is defined without a reference."""

    @model_validator(mode="after")
    def _reference(self) -> Direct:
        if self.without and "reference_free" in self.model_fields_set and not self.reference_free:
            name = type(self).__name__
            raise ValueError(f"{name} is defined without a reference; drop reference_free: false")
        return self

    @property
    def referenced(self) -> bool:
        """Whether the loss reads "ref_logp"."""
        return not (self.without or self.reference_free)

    @property
    def nll(self) -> float:
        """Weight of the chosen completion's mean negative log-likelihood in the loss."""
        return self.rpo_alpha

    @abstractmethod
    def at(self, z0: float) -> Objective:
        """The loss of one optimiser step; ``z0`` is KTO's, which other methods ignore. Abstract."""

    @abstractmethod
    def implicit(self, p: Pairs) -> tuple[Tensor, Tensor]:
        """Implicit rewards of the chosen and the rejected completions, on the loss's own scale.
        Abstract."""

    def usable(self, group: Group) -> bool:
        """Whether a group has something to train on."""
        ranks = {c.rank for c in group.completions if c.rank is not None and c.trained}
        return len(ranks) > 1

    def counts(self, pack: Pack) -> Counts:
        """Groups with at least one comparable pair."""
        usable = sum(1.0 for pairs in strict_pairs(pack)[0] if pairs)
        return {"groups": usable, "tokens": float(pack.trained_B.sum())}

    def pairs(self, out: Output, pack: Pack) -> PackPairs | None:
        """The pack's pairs; None when it has none."""
        by_group, _ = strict_pairs(pack)
        flat = [(w, l, 1.0 / len(pairs), g) for g, pairs in enumerate(by_group) for w, l in pairs]
        if not flat:
            return None
        sums_B, ratios_B = summed(out, pack, self.referenced)
        w = torch.tensor([f[0] for f in flat], device=sums_B.device)
        l = torch.tensor([f[1] for f in flat], device=sums_B.device)
        n_B = pack.trained_B.to(sums_B.dtype)
        pairs = Pairs(sums_B[w], sums_B[l], ratios_B[w], ratios_B[l], n_B[w], n_B[l])
        share_P = torch.tensor([f[2] for f in flat], dtype=sums_B.dtype, device=sums_B.device)
        return PackPairs(pairs, share_P, [f[3] for f in flat], w, l)

    def right(self, out: Output, pack: Pack) -> list[tuple[int, float]]:
        """(group, 1 / 0.5 / 0) of each comparison the implicit rewards get right, tie, get wrong."""
        compared = self.pairs(out, pack)
        if compared is None:
            return []
        right_P = ahead(*self.implicit(compared.pairs))
        return list(zip(compared.group_P, right_P.tolist(), strict=True))


class PairLoss(Direct):
    """A direct method on pairs: a subclass defines ``loss`` and ``implicit``."""

    @abstractmethod
    def loss(self, p: Pairs) -> Tensor:
        """The formula, without the likelihood: [P]. Abstract."""

    def at(self, z0: float) -> Objective:
        return self

    def __call__(self, out: Output, pack: Pack) -> Loss:
        """Needs ``logp_C``, and the tokens' "ref_logp" unless reference-free."""
        assert out.logp_C is not None
        compared = self.pairs(out, pack)
        if compared is None:
            return Loss({"loss": Term(zero_like(out.logp_C), "groups")})
        p, share_P = compared.pairs, compared.share_P
        loss_P = self.loss(p)
        if self.nll:
            loss_P = loss_P - self.nll * p.W_P / p.nw_P
        loss = Loss({"loss": Term((share_P * loss_P).sum(), "groups")})
        loss.metrics.update(self._metrics(compared, out, pack))
        return loss

    def _metrics(self, compared: PackPairs, out: Output, pack: Pack) -> Metrics:
        """Implicit rewards, log-probs, their change since the reference, ties."""
        p, share_P = compared.pairs, compared.share_P
        reward_w, reward_l = self.implicit(p)
        values = {
            "rewards/chosen": reward_w,
            "rewards/rejected": reward_l,
            "rewards/margins": reward_w - reward_l,
            "rewards/accuracies": ahead(reward_w, reward_l),
            "logps/chosen": p.W_P,
            "logps/rejected": p.L_P,
            "nll": -p.W_P / p.nw_P,
        }
        if "ref_logp" in pack.tokens:
            sums_B, moved_B = summed(out, pack, True)
            start_B = sums_B - moved_B
            values["logps/chosen_shift"] = p.W_P - start_B[compared.chosen_P]
            values["logps/rejected_shift"] = p.L_P - start_B[compared.rejected_P]
        metrics: Metrics = {k: (detached(share_P * v), "groups") for k, v in values.items()}
        ties = strict_pairs(pack)[1]
        metrics["ties"] = (torch.tensor(float(ties), device=share_P.device), "groups")
        return metrics


class WithBeta(Direct):
    """Methods whose implicit reward is beta (logpi - logref)."""

    beta: float = Field(default=0.1, gt=0.0)
    """KL coefficient: a higher one keeps the policy nearer to the reference."""

    def implicit(self, p: Pairs) -> tuple[Tensor, Tensor]:
        """beta a, beta b."""
        return self.beta * p.a_P, self.beta * p.b_P


class Scaled(WithBeta, PairLoss):
    """Methods on pairs whose implicit reward is beta (logpi - logref)."""

    def z(self, p: Pairs) -> Tensor:
        """beta (a - b)."""
        w, l = self.implicit(p)
        return w - l


def strict_pairs(pack: Pack) -> tuple[list[list[tuple[int, int]]], int]:
    """For each group its pairs (chosen, rejected) as completion indices; and the number of ties."""
    trained = pack.trained_B.tolist()
    by_group: list[list[tuple[int, int]]] = []
    ties = 0
    for pairs in pair_indices(pack):
        comparable = [(w, l, m) for w, l, m in pairs if trained[w] and trained[l]]
        by_group.append([(w, l) for w, l, m in comparable if not math.isnan(m)])
        ties += len(comparable) - len(by_group[-1])
    return by_group, ties


def summed(out: Output, pack: Pack, referenced: bool) -> tuple[Tensor, Tensor]:
    """Summed log-probs of completions [B], and the same minus the reference's where ``referenced``."""
    assert out.logp_C is not None
    count = len(pack.last_B)
    sums = segment_sum(out.logp_C, pack.owner_C, count)
    if not referenced:
        return sums, sums
    reference = pack.tokens["ref_logp"].to(out.logp_C.dtype)
    # Differences first: the sums are large and close, and would cancel.
    return sums, segment_sum(out.logp_C - reference, pack.owner_C, count)


def ahead(w: Tensor, l: Tensor) -> Tensor:
    """1 where w > l, 1/2 where they are equal, else 0; off the graph."""
    return torch.where(w == l, 0.5, (w > l).to(w.dtype)).detach()
