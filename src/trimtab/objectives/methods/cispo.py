"""CISPO: MiniMax-M1, 2506.13585."""

from __future__ import annotations

from typing import Literal

from trimtab.objectives.advantage import Baseline, Scale
from trimtab.objectives.policy import PolicyMethod, Surrogate


class CISPO(PolicyMethod):
    """L = -sum_it sg(min(rho, cap)) A_i log pi_t / tokens, A_i as in GRPO.

    The weight is cut, not the gradient: every token goes on teaching, also those a clip would
    silence. ``cap`` is 1 + epsilon (ScaleRL: 5). The value of this loss means nothing.
    """

    type: Literal["cispo"] = "cispo"
    group_size: int = 8
    baseline: Baseline = "group"
    scale: Scale = "group"
    surrogate: Surrogate = "weighted"
