"""REINFORCE (Williams 1992) and A2C (1602.01783): the policy gradient itself, no ratio."""

from __future__ import annotations

from typing import Literal

from trimtab.objectives.advantage import Baseline
from trimtab.objectives.kl import Place
from trimtab.objectives.policy import PolicyMethod, Surrogate
from trimtab.objectives.terms import Aggregation


class Reinforce(PolicyMethod):
    """L = -sum_t A_t log pi_t, mean over completions; A_t = R - mean(R) - beta * KL-to-go."""

    type: Literal["reinforce"] = "reinforce"
    baseline: Baseline = "batch"
    surrogate: Surrogate = "likelihood"
    kl_place: Place = "reward"
    aggregation: Aggregation = "seq-mean-token-sum"


class A2C(PolicyMethod):
    """The same with a critic: A_t = returns_t - V_t, generalised advantages at lambda 1."""

    type: Literal["a2c"] = "a2c"
    advantage: str = "gae"
    lam: float = 1.0
    surrogate: Surrogate = "likelihood"
    kl_place: Place = "reward"
    aggregation: Aggregation = "seq-mean-token-sum"
