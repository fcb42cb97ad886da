"""KTO: completions labelled good or bad, without pairs (2402.01306)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from trimtab.data.pack import Output, Pack
from trimtab.objectives.pairs import WithBeta, ahead, summed
from trimtab.objectives.terms import Counts, Loss, Metrics, Term, detached, zero_like
from trimtab.types import Completion, Group


def kto(ratio: Tensor, good: Tensor, z0: float, beta: float, d: float, u: float) -> Tensor:
    """D (1 - s(beta (ratio - z0))) of good completions, U (1 - s(beta (z0 - ratio))) of bad ones."""
    gain = beta * (ratio - z0)
    return torch.where(good, d * torch.sigmoid(-gain), u * torch.sigmoid(gain))


class KTO(WithBeta):
    """Completions labelled good or bad; the mean over all of an optimiser step (2402.01306).

    The label is the rank: 0 is good, any other is bad. A lone completion of a group (a row with
    ``label``) keeps its own label; in a group of several the best are good and the others bad, and a
    group whose completions all tie is left out.
    """

    type: Literal["kto"] = "kto"
    desirable: float = Field(default=1.0, ge=0.0)
    """lambda_D, the weight of good completions."""
    undesirable: float = Field(default=1.0, ge=0.0)
    """lambda_U, the weight of bad completions."""

    @model_validator(mode="after")
    def _needs_reference(self) -> KTO:
        if self.reference_free:
            raise ValueError("KTO's z0 is a KL to the reference; drop reference_free, or use simpo")
        if self.desirable == 0 and self.undesirable == 0:
            raise ValueError("desirable and undesirable are both 0: there is nothing to train on")
        return self

    def usable(self, group: Group) -> bool:
        return any(label is not None for label in labels(group))

    def counts(self, pack: Pack) -> Counts:
        """Labelled completions: all, good, bad."""
        flat = [x for g in pack.groups for x in labels(g) if x is not None]
        good = float(sum(flat))
        return {"completions": float(len(flat)), "chosen": good, "rejected": len(flat) - good}

    def right(self, out: Output, pack: Pack) -> list[tuple[int, float]]:
        """Pairs where there are any; of a lone completion, whether its reward has the right sign."""
        hits = super().right(out, pack)
        _, ratios = summed(out, pack, True)
        owner = pack.group_B.tolist()
        flat = [x for g in pack.groups for x in labels(g)]
        for b, (label, ratio) in enumerate(zip(flat, ratios.tolist(), strict=True)):
            if label is not None and len(pack.groups[owner[b]].completions) == 1:
                signed = ratio if label else -ratio
                hits.append((owner[b], 0.5 if signed == 0 else float(signed > 0)))
        return hits

    def at(self, z0: float) -> KTOAt:
        """The loss of one step, whose z0 is known."""
        return KTOAt(self, z0)


@dataclass(frozen=True, slots=True)
class KTOAt:
    """KTO with the z0 of one optimiser step, so that no pack has to know the others."""

    config: KTO
    z0: float
    """max(0, mean(logpi - logref)) over the step's mismatched pairs, nats; no gradient."""

    def counts(self, pack: Pack) -> Counts:
        return self.config.counts(pack)

    def __call__(self, out: Output, pack: Pack) -> Loss:
        """Needs ``logp_C`` and the tokens' "ref_logp"."""
        assert out.logp_C is not None
        c = self.config
        flat = [x for g in pack.groups for x in labels(g)]
        used = [b for b, label in enumerate(flat) if label is not None]
        if not used:
            return Loss({"loss": Term(zero_like(out.logp_C), "completions")})
        sums_B, ratios_B = summed(out, pack, True)
        at = torch.tensor(used, device=sums_B.device)
        good = torch.tensor([bool(flat[b]) for b in used], device=sums_B.device)
        logp, ratio = sums_B[at], ratios_B[at]
        loss = kto(ratio, good, self.z0, c.beta, c.desirable, c.undesirable)
        nll = -logp / pack.trained_B.to(sums_B.dtype)[at]
        loss = loss + torch.where(good, c.rpo_alpha * nll, torch.zeros_like(nll))
        signed = torch.where(good, ratio, -ratio)
        metrics: Metrics = {"rewards/accuracies": (detached(ahead(signed, -signed)), "completions")}
        sides: dict[Literal["chosen", "rejected"], Tensor] = {"chosen": good, "rejected": ~good}
        for side, on in sides.items():
            if bool(on.any()):
                metrics[f"rewards/{side}"] = (detached(c.beta * ratio[on]), side)
                metrics[f"logps/{side}"] = (detached(logp[on]), side)
                metrics[f"logps/{side}_shift"] = (detached(ratio[on]), side)
        if bool(good.any()):
            metrics["nll"] = (detached(nll[good]), "chosen")
        return Loss({"loss": Term(loss.sum(), "completions")}, metrics)


def labels(group: Group) -> list[bool | None]:
    """Of each completion: good (True), bad (False) or unused (None); see ``KTO``."""
    ranks = [c.rank if c.trained else None for c in group.completions]
    used = [r for r in ranks if r is not None]
    if len(group.completions) == 1:
        return [None if r is None else r == 0 for r in ranks]
    if len(set(used)) < 2:
        return [None] * len(ranks)
    return [None if r is None else r == min(used) for r in ranks]


def mismatched(groups: Sequence[Group]) -> list[Group]:
    """Each prompt with the labelled completions of another, for KTO's z0.

    Prompts are sorted by id, so the order of ``groups`` does not matter; each gets the completions of
    the next different prompt. Empty when all prompts are equal.
    """
    order = sorted(groups, key=lambda g: g.id)
    mixed: list[Group] = []
    for i, group in enumerate(order):
        for other in (*order[i + 1 :], *order[:i]):
            if other.prompt.tolist() != group.prompt.tolist():
                break
        else:
            continue
        completions = [
            Completion(c.ids, c.mask)
            for c, label in zip(other.completions, labels(other), strict=True)
            if label is not None
        ]
        if completions:
            mixed.append(Group(f"{group.id} | {other.id}", group.prompt, completions))
    return mixed
