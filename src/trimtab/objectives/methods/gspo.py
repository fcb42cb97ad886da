"""GSPO and GSPO-token: Zheng et al. 2507.18071."""

from typing import Literal

from trimtab.objectives.advantage import AdvantageSpec
from trimtab.objectives.policy import PolicyMethod
from trimtab.objectives.ratio import ClipSpec, Level
from trimtab.objectives.terms import Aggregation


class GSPO(PolicyMethod):
    """L = mean_i -min(s_i A_i, clip(s_i, 1-3e-4, 1+4e-4) A_i), A_i as in GRPO.

    s_i = exp(mean_t log(pi/pi_old)), one ratio per completion: a geometric mean, so the noise of
    single tokens (routing flips of a mixture of experts) averages out, and its clip is narrow.
    """

    type: Literal["gspo"] = "gspo"
    group_size: int = 8
    advantage: AdvantageSpec = AdvantageSpec(baseline="group", scale="group")
    # s_i
    ratio: Level = "sequence"
    clip: ClipSpec = ClipSpec(low=3e-4, high=4e-4)
    # mean_i
    aggregation: Aggregation = "seq-mean-token-mean"


class GSPOToken(GSPO):
    """s_t = sg(s_i) pi_t / sg(pi_t): GSPO's value and gradient where A is constant over a
    completion, and defined where it is not (process rewards)."""

    type: Literal["gspo_token"] = "gspo_token"  # pyright: ignore[reportIncompatibleVariableOverride]
    ratio: Level = "sequence-token"
