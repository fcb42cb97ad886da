"""GRPO: Shao et al. 2402.03300."""

from typing import Literal

from trimtab.objectives.advantage import AdvantageSpec
from trimtab.objectives.kl import KL, FixedKL
from trimtab.objectives.policy import PolicyMethod
from trimtab.objectives.ratio import ClipSpec, Level, Surrogate
from trimtab.objectives.terms import Aggregation


class GRPO(PolicyMethod):
    """L = mean_i mean_t [ -min(rho A_i, clip(rho) A_i) + beta k3_t ] over completions i, tokens t.

    A_i = (R_i - mean) / (std + 1e-6) over the group, std unbiased; rho = pi / pi_old of the token;
    k3 = exp(-l) - 1 + l with l = log pi - log ref. ``advantage: {estimator: process}`` is its
    process supervision.
    """

    type: Literal["grpo"] = "grpo"
    group_size: int = 8
    # A_i = (R_i - mean) / (std + 1e-6)
    advantage: AdvantageSpec = AdvantageSpec(baseline="group", scale="group", eps=1e-6)
    # -min(rho A_i, clip(rho, 1 - 0.2, 1 + 0.2) A_i)
    surrogate: Surrogate = "clipped"
    ratio: Level = "token"
    clip: ClipSpec = ClipSpec(low=0.2, high=0.2)
    # + beta k3_t
    kl: KL = FixedKL(place="loss", estimator="k3", beta=0.04)
    # mean_i mean_t
    aggregation: Aggregation = "seq-mean-token-mean"
