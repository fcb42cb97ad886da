"""KTO: good and bad answers by themselves (2402.01306)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from trimtab.data.pack import Output, Pack
from trimtab.objectives.pairs import Scaled, ahead, summed
from trimtab.objectives.terms import Counts, Loss, Per, Term, detached, zero_like
from trimtab.types import Completion, Group


def kto(ratio: Tensor, good: Tensor, z0: float, beta: float, d: float, u: float) -> Tensor:
    """D (1 - s(beta (ratio - z0))) of good answers, U (1 - s(beta (z0 - ratio))) of bad ones."""
    gain = beta * (ratio - z0)
    return torch.where(good, d * torch.sigmoid(-gain), u * torch.sigmoid(gain))


class KTO(Scaled):
    """Good and bad answers by themselves, their mean over all of the step (2402.01306).

    The label is the rank: 0 is good, any other is bad. An answer alone in its group (a row with
    ``label``) is taken at its word; in a group of several the best are good and the rest bad,
    and one whose answers all tie is left out.
    """

    type: Literal["kto"] = "kto"
    desirable: float = Field(default=1.0, ge=0.0)
    """lambda_D, the weight of good answers."""
    undesirable: float = Field(default=1.0, ge=0.0)
    """lambda_U, the weight of bad ones."""

    @model_validator(mode="after")
    def _needs_reference(self) -> KTO:
        if self.reference_free:
            raise ValueError("KTO's z0 is a KL to the reference; drop reference_free, or use simpo")
        if self.desirable == 0 and self.undesirable == 0:
            raise ValueError("desirable and undesirable are both 0: there is nothing to train on")
        return self

    def usable(self, group: Group) -> bool:
        """See ``Direct``."""
        return any(label is not None for label in labels(group))

    def counts(self, pack: Pack) -> Counts:
        """Labelled answers: all, good, bad."""
        found = [x for g in pack.groups for x in labels(g) if x is not None]
        good = float(sum(found))
        return {"completions": float(len(found)), "chosen": good, "rejected": len(found) - good}

    def right(self, out: Output, pack: Pack) -> list[tuple[int, float]]:
        """Pairs where there are any; of an answer alone, whether its reward has the right sign."""
        found = super().right(out, pack)
        _, ratios = summed(out, pack, True)
        owner = pack.group_B.tolist()
        flat = [x for g in pack.groups for x in labels(g)]
        for b, (label, ratio) in enumerate(zip(flat, ratios.tolist(), strict=True)):
            if label is not None and len(pack.groups[owner[b]].completions) == 1:
                signed = ratio if label else -ratio
                found.append((owner[b], 0.5 if signed == 0 else float(signed > 0)))
        return found

    def at(self, z0: float) -> KTOAt:
        """The loss of one step, whose z0 is known."""
        return KTOAt(self, z0)


@dataclass(frozen=True, slots=True)
class KTOAt:
    """KTO with the z0 of one whole optimiser step, so that no pack has to know the others."""

    config: KTO
    z0: float
    """max(0, mean(logpi - logref)) over the step's mismatched pairs, nats; no gradient."""

    def counts(self, pack: Pack) -> Counts:
        """See ``KTO``."""
        return self.config.counts(pack)

    def __call__(self, out: Output, pack: Pack) -> Loss:
        """Needs ``logp_C`` and the tokens' "ref_logp"."""
        assert out.logp_C is not None
        c = self.config
        flat = [x for g in pack.groups for x in labels(g)]
        used = [b for b, label in enumerate(flat) if label is not None]
        if not used:
            return Loss({"loss": Term(zero_like(out.logp_C), "completions")})
        sums, ratios = summed(out, pack, True)
        at = torch.tensor(used, device=sums.device)
        good = torch.tensor([bool(flat[b]) for b in used], device=sums.device)
        W, ratio = sums[at], ratios[at]
        each = kto(ratio, good, self.z0, c.beta, c.desirable, c.undesirable)
        nll = -W / pack.trained_B.to(sums.dtype)[at]
        each = each + torch.where(good, c.rpo_alpha * nll, torch.zeros_like(nll))
        signed = torch.where(good, ratio, -ratio)
        metrics: dict[str, tuple[Tensor, Per]] = {
            "rewards/accuracies": (detached(ahead(signed, -signed)), "completions")
        }
        sides: tuple[tuple[Literal["chosen", "rejected"], Tensor], ...] = (
            ("chosen", good), ("rejected", ~good),
        )  # fmt: skip
        for side, on in sides:
            if bool(on.any()):
                metrics[f"rewards/{side}"] = (detached(c.beta * ratio[on]), side)
                metrics[f"logps/{side}"] = (detached(W[on]), side)
                metrics[f"logps/{side}_shift"] = (detached(ratio[on]), side)
        if bool(good.any()):
            metrics["nll"] = (detached(nll[good]), "chosen")
        return Loss({"loss": Term(each.sum(), "completions")}, metrics)


def labels(group: Group) -> list[bool | None]:
    """For KTO: good, bad or unused, of each completion (see ``KTO``)."""
    ranks = [c.rank if c.trained else None for c in group.completions]
    known = [r for r in ranks if r is not None]
    if len(group.completions) == 1:
        return [None if r is None else r == 0 for r in ranks]
    if len(set(known)) < 2:
        return [None] * len(ranks)
    return [None if r is None else r == min(known) for r in ranks]


def mismatched(groups: Sequence[Group]) -> list[Group]:
    """Each prompt with the labelled answers of another, for KTO's z0.

    Prompts stand in the order of their ids, so the order of ``groups`` does not matter; each takes
    the answers of the next that differs. Empty when all prompts are equal.
    """
    order = sorted(groups, key=lambda g: g.id)
    made: list[Group] = []
    for i, group in enumerate(order):
        for other in (*order[i + 1 :], *order[:i]):
            if other.prompt.tolist() != group.prompt.tolist():
                break
        else:
            continue
        answers = [
            Completion(c.ids, c.mask)
            for c, label in zip(other.completions, labels(other), strict=True)
            if label is not None
        ]
        if answers:
            made.append(Group(f"{group.id} | {other.id}", group.prompt, answers))
    return made
