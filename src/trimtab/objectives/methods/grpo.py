"""GRPO: Shao et al. 2402.03300."""

from __future__ import annotations

from typing import Literal

from trimtab.objectives.advantage import Baseline, Scale
from trimtab.objectives.kl import Estimator, FixedKL, KLControl, Place
from trimtab.objectives.policy import PolicyMethod
from trimtab.objectives.terms import Aggregation


class GRPO(PolicyMethod):
    """L = mean_i mean_t [ -min(rho A_i, clip(rho) A_i) + beta k3_t ].

    A_i = (R_i - mean) / (std + 1e-6) over the group, std unbiased; k3 = e^-l - 1 + l with
    l = log pi - log ref. ``advantage: process`` is its process supervision.
    """

    type: Literal["grpo"] = "grpo"
    group_size: int = 8
    baseline: Baseline = "group"
    scale: Scale = "group"
    kl_place: Place = "loss"
    kl_estimator: Estimator = "k3"
    kl: KLControl = FixedKL(beta=0.04)
    aggregation: Aggregation = "seq-mean-token-mean"
