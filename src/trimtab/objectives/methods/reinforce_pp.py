"""REINFORCE++ and its baseline variant: Hu et al. 2501.03262."""

from typing import Literal

from trimtab.objectives.advantage import AdvantageSpec
from trimtab.objectives.kl import KL, FixedKL
from trimtab.objectives.policy import PolicyMethod


class ReinforcePP(PolicyMethod):
    """PPO's clip without a critic: A_t = R - beta * sum_{s>=t} k1_s, whitened over the batch."""

    type: Literal["reinforce_pp"] = "reinforce_pp"
    advantage: AdvantageSpec = AdvantageSpec(estimator="returns", whiten=True)
    kl: KL = FixedKL(place="reward", estimator="k1", beta=0.01)


class ReinforcePPBaseline(PolicyMethod):
    """A = R - mean of its group (not divided), whitened over the batch; the KL as k2 in the loss."""

    type: Literal["reinforce_pp_baseline"] = "reinforce_pp_baseline"
    group_size: int = 8
    advantage: AdvantageSpec = AdvantageSpec(baseline="group", scale="none", whiten=True)
    kl: KL = FixedKL(place="loss", estimator="k2", beta=0.01)
