"""Dr.GRPO, GRPO done right: Liu et al. 2503.20783."""

from __future__ import annotations

from typing import Literal

from trimtab.objectives.advantage import Baseline
from trimtab.objectives.policy import PolicyMethod
from trimtab.objectives.terms import Aggregation


class DrGRPO(PolicyMethod):
    """L = sum_it -min(rho A_i, clip(rho) A_i) / (B * L_max), A_i = R_i - mean of its group.

    Neither the group's deviation nor a completion's own length divides: both bias GRPO, the first
    towards easy and hard prompts, the second towards long wrong answers. L_max is a constant, the
    sampling limit unless ``max_length`` says another.
    """

    type: Literal["dr_grpo"] = "dr_grpo"
    group_size: int = 8
    baseline: Baseline = "group"
    aggregation: Aggregation = "seq-mean-token-sum-norm"
