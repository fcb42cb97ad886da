"""PPO with a critic: Schulman et al. 1707.06347, for language as in Ouyang et al. 2203.02155."""

from typing import Literal

from trimtab.objectives.advantage import AdvantageSpec
from trimtab.objectives.kl import KL, FixedKL
from trimtab.objectives.policy import PolicyMethod, UpdateSpec
from trimtab.objectives.ratio import ClipSpec, Surrogate
from trimtab.objectives.value import ValueSpec


class PPO(PolicyMethod):
    """L = -min(rho A, clip(rho, 1-e, 1+e) A) + value.coef * value loss, mean over tokens.

    r_t = -beta (log pi - log ref) + [t last] R; delta_t = r_t + gamma V_{t+1} - V_t;
    A_t = delta_t + gamma lambda A_{t+1}, whitened over the batch.
    """

    type: Literal["ppo"] = "ppo"
    # A_t = delta_t + gamma lambda A_{t+1}
    advantage: AdvantageSpec = AdvantageSpec(estimator="gae", gamma=1.0, lam=0.95, whiten=True)
    # -min(rho A, clip(rho, 1-e, 1+e) A)
    surrogate: Surrogate = "clipped"
    clip: ClipSpec = ClipSpec(low=0.2, high=0.2)
    # r_t = -beta (log pi - log ref) + ...
    kl: KL = FixedKL(place="reward", estimator="k1", beta=0.05)
    value: ValueSpec = ValueSpec(coef=0.1, clip=0.2)
    updates: UpdateSpec = UpdateSpec(epochs=4)
