"""RLOO: Ahmadian et al. 2402.14740."""

from __future__ import annotations

from typing import Literal

from trimtab.objectives.advantage import Baseline
from trimtab.objectives.kl import Place
from trimtab.objectives.policy import PolicyMethod, Surrogate
from trimtab.objectives.terms import Aggregation


class RLOO(PolicyMethod):
    """L = -sum_t A log pi_t, mean over completions.

    R'_i = R_i - beta sum_t (log pi - log ref), then A_i = R'_i - mean of the others in its group
    = G/(G-1) (R'_i - mean): the KL is taken off before the baseline, so it is baselined too.
    """

    type: Literal["rloo"] = "rloo"
    group_size: int = 8
    baseline: Baseline = "leave-one-out"
    surrogate: Surrogate = "likelihood"
    kl_place: Place = "sequence"
    aggregation: Aggregation = "seq-mean-token-sum"
