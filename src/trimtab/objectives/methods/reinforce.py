"""REINFORCE (Williams 1992) and A2C (1602.01783): the policy gradient itself, no ratio."""

from typing import Literal

from trimtab.objectives.advantage import AdvantageSpec
from trimtab.objectives.kl import KL, FixedKL
from trimtab.objectives.policy import PolicyMethod
from trimtab.objectives.ratio import Surrogate
from trimtab.objectives.terms import Aggregation


class Reinforce(PolicyMethod):
    """L = -sum_t A_t log pi_t, mean over completions; A_t = R - mean(R) - beta * KL-to-go."""

    type: Literal["reinforce"] = "reinforce"
    # R - mean(R)
    advantage: AdvantageSpec = AdvantageSpec(baseline="batch")
    # -A_t log pi_t
    surrogate: Surrogate = "likelihood"
    # - beta * KL-to-go
    kl: KL = FixedKL(place="reward", beta=0.05)
    # sum_t, mean over completions
    aggregation: Aggregation = "seq-mean-token-sum"


class A2C(PolicyMethod):
    """The same with a critic: A_t = returns_t - V_t, generalised advantages at lambda 1."""

    type: Literal["a2c"] = "a2c"
    # A_t = returns_t - V_t
    advantage: AdvantageSpec = AdvantageSpec(estimator="gae", lam=1.0)
    surrogate: Surrogate = "likelihood"
    kl: KL = FixedKL(place="reward", beta=0.05)
    aggregation: Aggregation = "seq-mean-token-sum"
