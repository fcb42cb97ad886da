"""Log-probabilities of completions under a model."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from trimtab.data.pack import packs
from trimtab.models.load import LM
from trimtab.sample.draw import SamplingConfig
from trimtab.types import Group


def summed_logps(lm: LM, groups: Sequence[Group], budget: int, temperature: float) -> list[float]:
    """Log-probability of each completion, nats, in the order of ``groups``."""
    temperature = temperature or 1.0
    return _summed_logps(lm, groups, budget, {temperature})[temperature]


@torch.no_grad()
def _summed_logps(
    lm: LM, groups: Sequence[Group], budget: int, temperatures: set[float]
) -> dict[float, list[float]]:
    """As ``summed_logps``, by temperature; all temperatures share the forward."""
    logps: dict[float, dict[int, float]] = {t: {} for t in temperatures}
    for pack in packs(groups, budget, share=lm.exact):
        on = pack.to(lm.device)
        states = lm.states(on)
        completions = [x for g in pack.groups for x in g.completions]
        for temperature, by_completion in logps.items():
            logp, _ = lm.logps(states, on, temperature, entropy=False)
            sums = torch.zeros(len(pack.last_B)).index_add(0, pack.owner_C, logp.cpu())
            pairs = zip(completions, sums, strict=True)
            by_completion.update({id(x): float(s) for x, s in pairs})
    return {t: [of[id(x)] for g in groups for x in g.completions] for t, of in logps.items()}


class Distance(NamedTuple):
    """How far completions are from other models: one number per completion, in the order of the groups."""

    log_ratio: npt.NDArray[np.float64] | None
    """log policy - log baseline at the temperature of sampling, nats; None for the baseline itself."""
    nll: npt.NDArray[np.float64]
    """Negative log-likelihood under the model that judges fluency, nats, at temperature 1: at a lower one
    every unlikely token would count for more, and figures of different temperatures would not compare."""
    tokens: npt.NDArray[np.int64]

    @property
    def kl(self) -> float | None:
        """KL to the baseline, nats per completion."""
        return None if self.log_ratio is None else float(self.log_ratio.mean())

    @property
    def nll_per_token(self) -> float:
        """Over all tokens."""
        return float(self.nll.sum() / self.tokens.sum())


def distance(
    lm: LM,
    baseline: LM,
    fluent: LM,
    groups: Sequence[Group],
    budget: int,
    sampling: SamplingConfig,
) -> Distance:
    """The distance of ``lm``'s completions from ``baseline`` and from ``fluent``.

    What the sampler recorded is used for ``lm`` itself, which saves a forward, unless its distribution
    was filtered.

    Args:
        groups: Prompts with completions that ``lm`` sampled.
        budget: Tokens per forward at most.
        sampling: How they were sampled.
    """
    temperature = sampling.temperature or 1.0
    if fluent is baseline:
        by_temperature = _summed_logps(baseline, groups, budget, {temperature, 1.0})
        reference, fluency = (np.asarray(by_temperature[t]) for t in (temperature, 1.0))
    else:
        reference = np.asarray(summed_logps(baseline, groups, budget, temperature))
        fluency = np.asarray(summed_logps(fluent, groups, budget, 1.0))
    completions = [x for g in groups for x in g.completions]
    log_ratio = None
    if lm is not baseline:
        if sampling.filtered:
            own = summed_logps(lm, groups, budget, temperature)
        else:
            own = [float(x.tokens["sampler_logp"].sum(dtype=np.float64)) for x in completions]
        log_ratio = np.asarray(own) - reference
    return Distance(log_ratio, -fluency, np.array([len(x) for x in completions]))
