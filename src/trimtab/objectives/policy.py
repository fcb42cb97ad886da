"""The parts that policy-gradient methods are made of."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.objectives.kl import log_ratio


def ratios(logp_C: Tensor, old_C: Tensor) -> Tensor:
    """rho = exp(logpi - logpi_old), the difference clamped to +-20."""
    return torch.exp(log_ratio(logp_C, old_C))


def clipped(
    ratio: Tensor, advantage: Tensor, low: float, high: float, dual: float | None = None
) -> Tensor:
    """-min(rho A, clip(rho, 1-low, 1+high) A) (1707.06347), elementwise.

    Args:
        ratio: rho.
        advantage: A, same shape.
        low, high: Clip range below and above 1.
        dual: c > 1 bounds the loss by -c A where A < 0 (1912.09729).
    """
    loss = -torch.minimum(ratio * advantage, ratio.clamp(1.0 - low, 1.0 + high) * advantage)
    if dual is None:
        return loss
    return torch.where(advantage < 0, torch.minimum(loss, -dual * advantage), loss)


def clip_fraction(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """1 where the clip takes the gradient away, elementwise."""
    return (((ratio > 1 + high) & (advantage > 0)) | ((ratio < 1 - low) & (advantage < 0))).float()
