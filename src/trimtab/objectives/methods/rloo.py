"""RLOO: Ahmadian et al. 2402.14740."""

from typing import Literal

from trimtab.objectives.advantage import AdvantageSpec
from trimtab.objectives.kl import KL, FixedKL
from trimtab.objectives.policy import PolicyMethod
from trimtab.objectives.ratio import Surrogate
from trimtab.objectives.terms import Aggregation


class RLOO(PolicyMethod):
    """L = -sum_t A log pi_t, mean over completions.

    R'_i = R_i - beta sum_t (log pi - log ref), then A_i = R'_i - mean of the others in its group
    = G/(G-1) (R'_i - mean): the KL is subtracted before the baseline, so it is baselined too.
    """

    type: Literal["rloo"] = "rloo"
    group_size: int = 8
    # A_i = R'_i - mean of the others
    advantage: AdvantageSpec = AdvantageSpec(baseline="leave-one-out")
    # -A log pi_t
    surrogate: Surrogate = "likelihood"
    # R'_i = R_i - beta sum_t (log pi - log ref)
    kl: KL = FixedKL(place="sequence", estimator="k1", beta=0.05)
    # sum_t, mean over completions
    aggregation: Aggregation = "seq-mean-token-sum"
