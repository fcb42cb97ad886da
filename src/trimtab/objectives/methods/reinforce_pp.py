"""REINFORCE++ and its baseline variant: Hu et al. 2501.03262."""

from __future__ import annotations

from typing import Literal

from trimtab.objectives.advantage import Baseline
from trimtab.objectives.kl import Estimator, FixedKL, KLControl, Place
from trimtab.objectives.policy import PolicyMethod


class ReinforcePP(PolicyMethod):
    """PPO's clip without a critic: A_t = R - beta * sum_{s>=t} k1_s, whitened over the batch."""

    type: Literal["reinforce_pp"] = "reinforce_pp"
    whiten_advantages: bool = True
    kl_place: Place = "reward"
    kl: KLControl = FixedKL(beta=0.01)


class ReinforcePPBaseline(PolicyMethod):
    """A = R - mean of its group (not divided), whitened over the batch; the KL as k2 in the loss."""

    type: Literal["reinforce_pp_baseline"] = "reinforce_pp_baseline"
    group_size: int = 8
    baseline: Baseline = "group"
    whiten_advantages: bool = True
    kl_place: Place = "loss"
    kl_estimator: Estimator = "k2"
    kl: KLControl = FixedKL(beta=0.01)
