"""DAPO: Yu et al. 2503.14476, in all its parts."""

from __future__ import annotations

from typing import Literal

from trimtab.objectives.advantage import Baseline, Scale
from trimtab.objectives.policy import PolicyMethod


class DAPO(PolicyMethod):
    """L = sum_it -min(rho A_i, clip(rho, 1-.2, 1+.28) A_i) / tokens, A_i as in GRPO.

    1. No KL to a reference.
    2. Clip-higher: rare tokens may grow, so entropy lasts longer.
    3. Dynamic sampling: groups whose rewards are all equal teach nothing; others are sampled in
       their place, ``max_tries`` times at most, judged by the unshaped reward.
    4. Every token weighs the same, also those of long completions.
    5. Overlong: a penalty that grows to -1 over the last fifth of the length limit, and cut
       completions are left out of the loss.

    The paper's rewards are +1 and -1.
    """

    type: Literal["dapo"] = "dapo"
    group_size: int = 8
    baseline: Baseline = "group"
    scale: Scale = "group"
    clip_high: float = 0.28
    dynamic_sampling: bool = True
    overlong: float = 0.2
    mask_truncated: bool = True
