"""Importance ratios, their clipping and the surrogates built on them (ALGORITHMS sections 7 and 9)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from trimtab.config import Config
from trimtab.data.pack import Pack
from trimtab.objectives.kl import CLAMP, log_ratio
from trimtab.objectives.tensors import segment_sum

Surrogate = Literal["clipped", "weighted", "likelihood"]
"""-min(rho A, clip(rho) A) | -sg(min(rho, cap)) A log pi | -A log pi."""

Level = Literal["token", "sequence", "sequence-token", "product"]
"""Each token's own ratio | the geometric mean over its completion | that mean in value, the token's
own in gradient | the product over the completion."""


class ClipSpec(Config):
    """Bounds of the importance ratio rho."""

    low: float = Field(default=0.2, gt=0.0, le=1.0)
    """rho is clipped below 1 - low (surrogate "clipped")."""
    high: float = Field(default=0.2, gt=0.0)
    """rho is clipped above 1 + high (surrogate "clipped")."""
    dual: float | None = Field(default=None, gt=1.0)
    """c of dual clip: the loss is at most -c A where A < 0 (1912.09729); usually 3, off by default."""
    cap: float = 5.0
    """Upper bound of rho in surrogate "weighted": 1 + epsilon, not epsilon."""


def ratios(logp_C: Tensor, old_C: Tensor) -> Tensor:
    """rho = exp(logpi - logpi_old), the difference clamped to +-20."""
    return torch.exp(log_ratio(logp_C, old_C))


def level_ratios(logp_C: Tensor, old_C: Tensor, pack: Pack, level: Level) -> Tensor:
    """Importance ratio [C] of each trained token at ``level`` (GSPO: 2507.18071)."""
    if level == "token":
        return ratios(logp_C, old_C)
    log_C = log_ratio(logp_C, old_C)
    sum_B = segment_sum(log_C, pack.owner_C, len(pack.trained_B))
    if level == "product":
        return torch.exp(sum_B.clamp(-CLAMP, CLAMP))[pack.owner_C]
    mean_C = (sum_B / pack.trained_B.clamp(min=1.0))[pack.owner_C]
    if level == "sequence":
        return torch.exp(mean_C)
    return torch.exp(mean_C.detach() + logp_C - logp_C.detach())


def clipped(
    ratio: Tensor, advantage: Tensor, low: float, high: float, dual: float | None = None
) -> Tensor:
    """-min(rho A, clip(rho, 1-low, 1+high) A) (1707.06347), elementwise.

    Args:
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
