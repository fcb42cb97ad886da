"""PPO with a critic: Schulman et al. 1707.06347, for language as in Ouyang et al. 2203.02155."""

from __future__ import annotations

from typing import Literal

from trimtab.objectives.kl import Place
from trimtab.objectives.policy import PolicyMethod


class PPO(PolicyMethod):
    """L = -min(rho A, clip(rho, 1-e, 1+e) A) + value_coef * value loss, mean over tokens.

    r_t = -beta (log pi - log ref) + [t last] R; delta_t = r_t + gamma V_{t+1} - V_t;
    A_t = delta_t + gamma lambda A_{t+1}, whitened over the batch.
    """

    type: Literal["ppo"] = "ppo"
    advantage: str = "gae"
    whiten_advantages: bool = True
    kl_place: Place = "reward"
    epochs: int = 4
