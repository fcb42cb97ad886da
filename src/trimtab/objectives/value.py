"""The critic: its loss and how well it explains the returns."""

import torch
from pydantic import Field
from torch import Tensor

from trimtab.config import Config


class ValueSpec(Config):
    """The critic's loss."""

    coef: float = Field(default=0.1, ge=0.0)
    """Its weight beside the policy's loss."""
    clip: float | None = Field(default=0.2, gt=0.0)
    """How far a value may move from the one at sampling time; null does not clip."""


def value_loss(value: Tensor, old: Tensor, target: Tensor, clip: float | None) -> Tensor:
    """1/2 max((V - R)^2, (clip(V, V_old +- clip) - R)^2), elementwise; no clip when None."""
    plain = (value - target) ** 2
    if clip is None:
        return 0.5 * plain
    near = old + (value - old).clamp(-clip, clip)
    return 0.5 * torch.maximum(plain, (near - target) ** 2)


def explained_variance(value: Tensor, target: Tensor) -> float:
    """1 - Var(target - value) / Var(target); 0 when the target does not vary."""
    spread = float(target.var(unbiased=False)) if len(target) else 0.0
    return 1.0 - float((target - value).var(unbiased=False)) / spread if spread > 1e-12 else 0.0
