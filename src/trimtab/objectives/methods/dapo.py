"""DAPO: Yu et al. 2503.14476, in all its parts."""

from typing import Literal

from trimtab.objectives.advantage import AdvantageSpec
from trimtab.objectives.policy import FilterSpec, LengthSpec, PolicyMethod
from trimtab.objectives.ratio import ClipSpec
from trimtab.objectives.terms import Aggregation


class DAPO(PolicyMethod):
    """L = sum_it -min(rho A_i, clip(rho, 1-.2, 1+.28) A_i) / tokens, A_i as in GRPO.

    There is no KL to a reference. The paper's rewards are +1 and -1.
    """

    type: Literal["dapo"] = "dapo"
    group_size: int = 8
    advantage: AdvantageSpec = AdvantageSpec(baseline="group", scale="group")
    # Clip-higher: rare tokens may grow, so entropy lasts longer.
    clip: ClipSpec = ClipSpec(low=0.2, high=0.28)
    # Dynamic sampling: a group whose unshaped rewards are all equal has no gradient; another prompt
    # is sampled in its place, ``max_tries`` times at most.
    filter: FilterSpec = FilterSpec(dynamic_sampling=True)
    # Every token weighs the same, also those of long completions.
    aggregation: Aggregation = "token-mean"
    # Overlong: a penalty grows to -1 over the last fifth of the length limit, and cut completions
    # are masked in the loss.
    length: LengthSpec = LengthSpec(overlong=0.2, mask_truncated=True)
