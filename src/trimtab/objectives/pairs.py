"""What the direct methods share: the pairs of a pack, sums of log-probs, the loss around a formula."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from trimtab.config import Kind
from trimtab.data.pack import Output, Pack
from trimtab.objectives.bradley_terry import pair_indices
from trimtab.objectives.tensors import segment_sum
from trimtab.objectives.terms import Counts, Loss, Per, Term, detached, zero_like
from trimtab.types import Group


@dataclass(slots=True)
class Pairs:
    """P pairs of a chosen (w) and a rejected (l) answer; sums over trained tokens, nats."""

    W_P: Tensor
    """Log-prob of the chosen answer."""
    L_P: Tensor
    """Log-prob of the rejected answer."""
    a_P: Tensor
    """W less the reference's; W itself without a reference."""
    b_P: Tensor
    """L less the reference's."""
    nw_P: Tensor
    """Trained tokens of the chosen answer."""
    nl_P: Tensor
    """Trained tokens of the rejected answer."""


class Direct(Kind):
    """What the methods share: which pairs there are, the mix of likelihood, the metrics.

    A method on pairs says ``loss`` and ``implicit``; all else follows.

    Each prompt counts once: the mean over its comparable pairs. A tie is no pair, nor is a
    completion without a rank or without a trained token. The reference's log-probs are the
    tokens' "ref_logp".
    """

    usual: ClassVar[str] = "dpo"

    rpo_alpha: float = Field(default=0.0, ge=0.0)
    """Weight of RPO's -W/n_w (published: 1)."""
    reference_free: bool = False
    """Leave the reference out: a = W, b = L."""
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
        """Weight of the chosen answer's mean negative log-likelihood in the loss."""
        return self.rpo_alpha

    def loss(self, p: Pairs) -> Tensor:
        """The formula, without the likelihood: [P]. Abstract: each method has its own."""
        raise NotImplementedError

    def implicit(self, p: Pairs) -> tuple[Tensor, Tensor]:
        """Implicit rewards of the chosen and the rejected answers, on the loss's own scale.
        Abstract."""
        raise NotImplementedError

    def usable(self, group: Group) -> bool:
        """Whether a group has something to train on."""
        ranks = {c.rank for c in group.completions if c.rank is not None and c.trained}
        return len(ranks) > 1

    def counts(self, pack: Pack) -> Counts:
        """Groups with at least one comparable pair."""
        usable = sum(1.0 for found in strict_pairs(pack)[0] if found)
        return {"groups": usable, "tokens": float(pack.trained_B.sum())}

    def pairs(self, out: Output, pack: Pack) -> tuple[Pairs, Tensor, list[int]] | None:
        """The pack's pairs, each one's share of its prompt [P], and its group; None without any."""
        found, _ = strict_pairs(pack)
        flat = [(w, l, 1.0 / len(mine), g) for g, mine in enumerate(found) for w, l in mine]
        if not flat:
            return None
        sums, ratios = summed(out, pack, self.referenced)
        w = torch.tensor([f[0] for f in flat], device=sums.device)
        l = torch.tensor([f[1] for f in flat], device=sums.device)
        n = pack.trained_B.to(sums.dtype)
        made = Pairs(sums[w], sums[l], ratios[w], ratios[l], n[w], n[l])
        share = torch.tensor([f[2] for f in flat], dtype=sums.dtype, device=sums.device)
        return made, share, [f[3] for f in flat]

    def right(self, out: Output, pack: Pack) -> list[tuple[int, float]]:
        """(group, 1 / 0.5 / 0) of each comparison the implicit rewards get right, tie, get wrong."""
        made = self.pairs(out, pack)
        if made is None:
            return []
        return list(zip(made[2], ahead(*self.implicit(made[0])).tolist(), strict=True))

    def __call__(self, out: Output, pack: Pack) -> Loss:
        """Needs ``logp_C``, and the tokens' "ref_logp" unless reference-free."""
        assert out.logp_C is not None
        made = self.pairs(out, pack)
        if made is None:
            return Loss({"loss": Term(zero_like(out.logp_C), "groups")})
        p, share, _ = made
        each = self.loss(p)
        if self.nll:
            each = each - self.nll * p.W_P / p.nw_P
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
            _, moved = summed(out, pack, True)
            sums, _ = summed(out, pack, False)
            start = sums - moved
            w, l = _indices(pack, sums.device)
            values["logps/chosen_shift"] = p.W_P - start[w]
            values["logps/rejected_shift"] = p.L_P - start[l]
        metrics: dict[str, tuple[Tensor, Per]] = {
            k: (detached(share * v), "groups") for k, v in values.items()
        }
        ties = strict_pairs(pack)[1]
        metrics["ties"] = (torch.tensor(float(ties), device=share.device), "groups")
        return Loss({"loss": Term((share * each).sum(), "groups")}, metrics)


class Scaled(Direct):
    """Methods whose implicit reward is beta (logpi - logref)."""

    beta: float = Field(default=0.1, gt=0.0)
    """How strongly the policy is held to the reference: higher stays nearer."""

    def z(self, p: Pairs) -> Tensor:
        """beta (a - b)."""
        w, l = self.implicit(p)
        return w - l

    def implicit(self, p: Pairs) -> tuple[Tensor, Tensor]:
        """beta a, beta b."""
        return self.beta * p.a_P, self.beta * p.b_P


def strict_pairs(pack: Pack) -> tuple[list[list[tuple[int, int]]], int]:
    """For each group its pairs (chosen, rejected) as completion indices; and the ties left out."""
    trained = pack.trained_B.tolist()
    found: list[list[tuple[int, int]]] = []
    ties = 0
    for mine in pair_indices(pack):
        real = [(w, l, m) for w, l, m in mine if trained[w] and trained[l]]
        found.append([(w, l) for w, l, m in real if m == m])
        ties += len(real) - len(found[-1])
    return found, ties


def _indices(pack: Pack, device: torch.device) -> tuple[Tensor, Tensor]:
    flat = [pair for mine in strict_pairs(pack)[0] for pair in mine]
    w, l = zip(*flat, strict=True)
    return torch.tensor(w, device=device), torch.tensor(l, device=device)


def summed(out: Output, pack: Pack, referenced: bool) -> tuple[Tensor, Tensor]:
    """Log-probs of whole completions [B], and the same less the reference's where asked for."""
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
