"""Log-probabilities of completions under a model."""

from collections.abc import Sequence

import torch

from trimtab.data.pack import packs
from trimtab.models.load import LM
from trimtab.types import Group


@torch.no_grad()
def summed_logps(lm: LM, groups: Sequence[Group], budget: int, temperature: float) -> list[float]:
    """Log-probability of each completion, nats, in the order of ``groups``."""
    logps: dict[int, float] = {}
    for pack in packs(groups, budget, share=lm.exact):
        on = pack.to(lm.device)
        logp, _ = lm.logps(lm.states(on), on, temperature or 1.0, entropy=False)
        sums = torch.zeros(len(pack.last_B)).index_add(0, pack.owner_C, logp.cpu())
        completions = [x for g in pack.groups for x in g.completions]
        logps.update({id(x): float(s) for x, s in zip(completions, sums, strict=True)})
    return [logps[id(x)] for g in groups for x in g.completions]
