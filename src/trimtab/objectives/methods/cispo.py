"""CISPO: MiniMax-M1, 2506.13585."""

from typing import Literal

from trimtab.objectives.advantage import AdvantageSpec
from trimtab.objectives.policy import PolicyMethod
from trimtab.objectives.ratio import ClipSpec, Surrogate


class CISPO(PolicyMethod):
    """L = -sum_it sg(min(rho, cap)) A_i log pi_t / tokens, A_i as in GRPO.

    The weight is bounded, not the gradient: tokens that a clip would silence are still trained on.
    ``clip.cap`` is 1 + epsilon (ScaleRL: 5). The value of this loss has no meaning.
    """

    type: Literal["cispo"] = "cispo"
    group_size: int = 8
    advantage: AdvantageSpec = AdvantageSpec(baseline="group", scale="group")
    # -sg(min(rho, cap)) A_i log pi_t
    surrogate: Surrogate = "weighted"
    clip: ClipSpec = ClipSpec(cap=5.0)
