"""VinePPO: Kazemnejad et al. 2410.01679."""

from __future__ import annotations

from typing import Literal

from trimtab.objectives.kl import Estimator, FixedKL, KLControl, Place
from trimtab.objectives.policy import PolicyMethod


class VinePPO(PolicyMethod):
    """PPO's clip without a critic: A_t = V(after the step of t) - V(before it), whitened.

    V(s) is the mean reward of ``monte_carlo.k`` completions drawn from s, the beginning or the end
    of a step (``monte_carlo.separator``); the KL is k3 in the loss.
    """

    type: Literal["vineppo"] = "vineppo"
    group_size: int = 8
    """They share the continuations from the end of their prompt."""
    advantage: str = "gae"
    values: Literal["critic", "monte-carlo"] = "monte-carlo"
    whiten_advantages: bool = True
    kl_place: Place = "loss"
    kl_estimator: Estimator = "k3"
    kl: KLControl = FixedKL(beta=1e-4)
    epochs: int = 2
