"""Dr.GRPO, GRPO done right: Liu et al. 2503.20783."""

from typing import Literal

from trimtab.objectives.advantage import AdvantageSpec
from trimtab.objectives.policy import PolicyMethod
from trimtab.objectives.terms import Aggregation


class DrGRPO(PolicyMethod):
    """L = sum_it -min(rho A_i, clip(rho) A_i) / (B * L_max), A_i = R_i - mean of its group.

    Neither the group's deviation nor a completion's own length divides: both bias GRPO, the first
    towards easy and hard prompts, the second towards long wrong completions. L_max is a constant,
    ``max_length`` or, when that is 0, the sampling limit.
    """

    type: Literal["dr_grpo"] = "dr_grpo"
    group_size: int = 8
    # A_i = R_i - mean
    advantage: AdvantageSpec = AdvantageSpec(baseline="group", scale="none")
    # sum_it / (B * L_max)
    aggregation: Aggregation = "seq-mean-token-sum-norm"
