"""Losses of reward models on pairs and on K ranked completions; ensembles of scores."""

import itertools
import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from trimtab.config import Config
from trimtab.data.pack import Output, Pack
from trimtab.objectives.terms import Counts, Loss, Metrics, Term, detached


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

    Members must have a common scale: Bradley-Terry fixes scores only up to a constant.
    """
    if how == "mean":
        return scores_KB.mean(0)
    if how == "worst":
        return scores_KB.min(0).values
    return scores_KB.mean(0) - weight * scores_KB.var(0, unbiased=False)


def pair_indices(pack: Pack) -> list[list[tuple[int, int, float]]]:
    """For each group, the comparable pairs (winner, loser, margin) as completion indices.

    A tie is a pair with margin NaN. Completions without a rank are not compared.
    """
    members: list[list[int]] = [[] for _ in pack.groups]
    for b, g in enumerate(pack.group_B.tolist()):
        members[g].append(b)
    by_group: list[list[tuple[int, int, float]]] = []
    for group, indices in zip(pack.groups, members, strict=True):
        pairs: list[tuple[int, int, float]] = []
        ranked = list(zip(indices, group.completions, strict=True))
        for (a, x), (b, y) in itertools.combinations(ranked, 2):
            if x.rank is None or y.rank is None:
                continue
            if x.rank == y.rank:
                pairs.append((a, b, math.nan))
            else:
                pairs.append((a, b, x.margin) if x.rank < y.rank else (b, a, y.margin))
        by_group.append(pairs)
    return by_group


class BradleyTerry(Config):
    """Per prompt the mean over its C(K,2) pairs, then the mean over prompts (2203.02155).

    Flattening pairs across prompts would weight K = 9 six times K = 4 and overfit.
    """

    type: Literal["bradley_terry"] = "bradley_terry"
    loss: Literal["pairwise", "plackett_luce"] = "pairwise"
    """"plackett_luce" scores a ranking at once; groups with ties fall back to pairs."""
    smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """Epsilon: the label says P(w > l) = 1 - epsilon."""
    centering: float = Field(default=0.0, ge=0.0)
    """Weight of (r_w + r_l)^2 (2312.09244), which fixes the free constant of the scores."""
    margins: bool = True
    """Use the margins of the data where it has them."""

    def counts(self, pack: Pack) -> Counts:
        """Groups with at least one comparable pair."""
        usable = sum(1.0 for pairs in pair_indices(pack) if pairs)
        return {
            "groups": usable,
            "completions": float(len(pack.last_B)),
            "tokens": float(pack.trained_B.sum()),
        }

    def __call__(self, out: Output, pack: Pack) -> Loss:
        """Bradley-Terry or Plackett-Luce; needs ``score_B``."""
        assert out.score_B is not None
        r_B = out.score_B
        chosen: list[int] = []
        rejected: list[int] = []
        margins: list[float] = []
        shares: list[float] = []
        pairwise: list[bool] = []
        listwise: list[Tensor] = []
        for group, pairs in zip(pack.groups, pair_indices(pack), strict=True):
            ranking = self.loss == "plackett_luce" and not any(math.isnan(m) for *_, m in pairs)
            for w, l, m in pairs:
                chosen.append(w)
                rejected.append(l)
                margins.append(m)
                shares.append(1.0 / len(pairs))
                pairwise.append(not ranking)
            if pairs and ranking:
                ranked = [
                    (c.rank, i) for i, c in enumerate(group.completions) if c.rank is not None
                ]
                # The group's first ranked completion has the lowest index among its pairs.
                offset = min(min(w, l) for w, l, _ in pairs) - ranked[0][1]
                order = torch.tensor([offset + i for _, i in sorted(ranked)], device=r_B.device)
                listwise.append(plackett_luce(r_B[order]))
        if not chosen:
            return Loss({"loss": Term(r_B.sum() * 0.0, "groups")})
        w_P = torch.tensor(chosen, device=r_B.device)
        l_P = torch.tensor(rejected, device=r_B.device)
        margin_P = torch.tensor(margins, device=r_B.device)
        share_P = torch.tensor(shares, device=r_B.device)
        tie_P = margin_P.isnan()
        delta_P = r_B[w_P] - r_B[l_P]

        q_P = torch.where(
            tie_P, torch.full_like(delta_P, 0.5), torch.full_like(delta_P, 1.0 - self.smoothing)
        )
        margin_P = torch.where(tie_P | (not self.margins), torch.zeros_like(margin_P), margin_P)
        weight_P = share_P * torch.tensor(pairwise, device=r_B.device)
        loss = (weight_P * bradley_terry(delta_P, q_P, margin_P)).sum()
        if listwise:
            loss = loss + torch.stack(listwise).sum()
        terms = {"loss": Term(loss, "groups")}
        if self.centering:
            squared_P = (r_B[w_P] + r_B[l_P]) ** 2
            terms["centering"] = Term((share_P * squared_P).sum(), "groups", self.centering)

        right_P = torch.where(tie_P | (delta_P == 0), 0.5, (delta_P > 0).float())
        metrics: Metrics = {
            "accuracy": (detached(share_P * right_P), "groups"),
            "margin": (detached(share_P * delta_P), "groups"),
            "score": (detached(r_B), "completions"),
        }
        return Loss(terms, metrics)
