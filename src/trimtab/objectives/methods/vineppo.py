"""VinePPO: Kazemnejad et al. 2410.01679."""

from typing import Literal

from trimtab.objectives.advantage import AdvantageSpec
from trimtab.objectives.kl import KL, FixedKL
from trimtab.objectives.policy import PolicyMethod, UpdateSpec


class VinePPO(PolicyMethod):
    """PPO's clip without a critic: A_t = V(after the step of t) - V(before it), whitened.

    V(s) is the mean reward of ``monte_carlo.k`` completions drawn from s, the beginning or the end
    of a reasoning step (``monte_carlo.separator``); the KL is k3 in the loss.
    """

    type: Literal["vineppo"] = "vineppo"
    group_size: int = 8
    """They share the continuations from the end of their prompt."""
    # A_t = V(after) - V(before)
    advantage: AdvantageSpec = AdvantageSpec(estimator="gae", values="monte-carlo", whiten=True)
    kl: KL = FixedKL(place="loss", estimator="k3", beta=1e-4)
    updates: UpdateSpec = UpdateSpec(epochs=2)
