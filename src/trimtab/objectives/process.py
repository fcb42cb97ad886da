"""Process rewards: scores of steps, and how they become credit (ALGORITHMS section 4)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def aggregate_steps(p_S: Tensor, how: Literal["product", "min", "last", "mean"]) -> Tensor:
    """P(step correct) [S] as one score; the product is taken in log space (2305.20050)."""
    if how == "product":
        return torch.exp(torch.log(p_S.clamp(min=1e-30)).sum())
    if how == "min":
        return p_S.min()
    return p_S[-1] if how == "last" else p_S.mean()


def step_differences(p_S: Tensor) -> Tensor:
    """Dense rewards p_k - p_{k-1}, p_0 = 0: they telescope, so more steps do not pay."""
    return torch.diff(p_S, prepend=p_S.new_zeros(1))


def step_advantages(rewards_S: Tensor, ends_S: Tensor, length: int) -> Tensor:
    """A_t = sum of the step rewards that end at or after t (2402.03300): [length].

    Args:
        rewards_S: Standardised step rewards.
        ends_S: Index of each step's last token, from 0.
        length: Tokens of the completion.
    """
    dense = torch.zeros(length, dtype=rewards_S.dtype).index_add(0, ends_S, rewards_S)
    return torch.flip(torch.cumsum(torch.flip(dense, [0]), 0), [0])
