"""Losses of reward models on pairs and on K ranked answers, and what is read off their scores."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from trimtab.config import Config
from trimtab.data.pack import Output, Pack
from trimtab.objectives.terms import Counts, Loss, Per, Term


def bradley_terry(delta: Tensor, q: Tensor | float = 1.0, margin: Tensor | float = 0.0) -> Tensor:
    """-q log s(delta - margin) - (1-q) log s(-delta): Bradley and Terry 1952, as in 2203.02155.

    Args:
        delta: r_w - r_l, any shape.
        q: Probability that the first is better: 1 - epsilon when smoothed, 1/2 for a tie.
        margin: How much better it was judged, >= 0 (Llama-2, 2307.09288).
    """
    return -q * logsigmoid(delta - margin) - (1.0 - q) * logsigmoid(-delta)


def plackett_luce(scores: Tensor) -> Tensor:
    """-sum_{k<K} [r_(k) - logsumexp(r_(k..K))] of scores [K], best first."""
    tail = torch.flip(torch.logcumsumexp(torch.flip(scores, [0]), 0), [0])
    return -(scores - tail)[:-1].sum()


def ensemble(
    scores_KB: Tensor, how: Literal["mean", "worst", "uncertainty"], weight: float = 0.5
) -> Tensor:
    """Scores of K members as one (2310.02743): mean, minimum, or mean - weight * variance.

    Members must stand on a common scale: Bradley-Terry fixes scores only up to a constant.
    """
    if how == "mean":
        return scores_KB.mean(0)
    if how == "worst":
        return scores_KB.min(0).values
    return scores_KB.mean(0) - weight * scores_KB.var(0, unbiased=False)


def pair_indices(pack: Pack) -> list[list[tuple[int, int, float]]]:
    """For each group, the comparable pairs (winner, loser, margin) as completion indices.

    A tie is a pair with margin NaN. Completions without a rank are compared with nothing.
    """
    members: list[list[int]] = [[] for _ in pack.groups]
    for b, g in enumerate(pack.group_B.tolist()):
        members[g].append(b)
    pairs: list[list[tuple[int, int, float]]] = []
    for group, mine in zip(pack.groups, members, strict=True):
        found: list[tuple[int, int, float]] = []
        for i, a in enumerate(mine):
            for j in range(i + 1, len(mine)):
                x, y = group.completions[i], group.completions[j]
                if x.rank is None or y.rank is None:
                    continue
                if x.rank == y.rank:
                    found.append((a, mine[j], math.nan))
                elif x.rank < y.rank:
                    found.append((a, mine[j], x.margin))
                else:
                    found.append((mine[j], a, y.margin))
        pairs.append(found)
    return pairs


class BradleyTerry(Config):
    """Per prompt the mean over its C(K,2) pairs, then the mean over prompts (2203.02155).

    Flattening pairs across prompts would weight K = 9 six times K = 4 and overfit.
    """

    type: Literal["bradley_terry"] = "bradley_terry"
    loss: Literal["pairwise", "plackett_luce"] = "pairwise"
    """"plackett_luce" takes each ranking whole; groups with ties fall back to pairs."""
    smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """Epsilon: the label says P(w > l) = 1 - epsilon."""
    centering: float = Field(default=0.0, ge=0.0)
    """Weight of (r_w + r_l)^2 (2312.09244), which pins the free constant."""
    margins: bool = True
    """Use the margins of the data where it has them."""

    def counts(self, pack: Pack) -> Counts:
        """Groups with at least one comparable pair."""
        usable = sum(1.0 for found in pair_indices(pack) if found)
        return {
            "groups": usable,
            "completions": float(len(pack.last_B)),
            "tokens": float(pack.trained_B.sum()),
        }

    def __call__(self, out: Output, pack: Pack) -> Loss:
        """Bradley-Terry or Plackett-Luce; needs ``score_B``."""
        assert out.score_B is not None
        r = out.score_B
        first: list[int] = []
        second: list[int] = []
        margin: list[float] = []
        weight: list[float] = []
        listwise: list[Tensor] = []
        for group, found in zip(pack.groups, pair_indices(pack), strict=True):
            if not found:
                continue
            for w, l, m in found:
                first.append(w)
                second.append(l)
                margin.append(m)
                weight.append(1.0 / len(found))
            if self.loss == "plackett_luce" and not any(math.isnan(m) for *_, m in found):
                base = min(min(w, l) for w, l, _ in found)
                ranked = [
                    (c.rank, i) for i, c in enumerate(group.completions) if c.rank is not None
                ]
                order = [base + i - ranked[0][1] for _, i in sorted(ranked)]
                listwise.append(plackett_luce(r[torch.tensor(order, device=r.device)]))
                weight[-len(found) :] = [0.0] * len(found)
        if not first:
            nothing = r.sum() * 0.0
            return Loss({"loss": Term(nothing, "groups")})
        m_P = torch.tensor(margin, device=r.device)
        w_P = torch.tensor(weight, device=r.device)
        tie = m_P.isnan()
        delta = r[torch.tensor(first, device=r.device)] - r[torch.tensor(second, device=r.device)]
        total = r[torch.tensor(first, device=r.device)] + r[torch.tensor(second, device=r.device)]
        q = torch.where(
            tie, torch.full_like(delta, 0.5), torch.full_like(delta, 1.0 - self.smoothing)
        )
        gap = torch.where(tie | (not self.margins), torch.zeros_like(m_P), m_P)
        losses = (w_P * bradley_terry(delta, q, gap)).sum()
        if listwise:
            losses = losses + torch.stack(listwise).sum()
        share = torch.tensor([1.0 / n for n in _sizes(pack) for _ in range(n)], device=r.device)
        right = torch.where(delta == 0, 0.5, (delta > 0).float())
        right = torch.where(tie, 0.5, right)
        metrics: dict[str, tuple[Tensor, Per]] = {
            "accuracy": ((share * right).sum().detach(), "groups"),
            "margin": ((share * delta).sum().detach(), "groups"),
            "score": (r.detach().sum(), "completions"),
        }
        terms = {"loss": Term(losses, "groups")}
        if self.centering:
            terms["centering"] = Term((share * total**2).sum(), "groups", self.centering)
        return Loss(terms, metrics)


def _sizes(pack: Pack) -> list[int]:
    return [len(found) for found in pair_indices(pack) if found]
