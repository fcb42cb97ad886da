"""KL to the reference: estimators and the controllers of its coefficient (ALGORITHMS section 5)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Discriminator, Field, Tag, model_validator
from torch import Tensor

from trimtab.config import Config

Estimator = Literal["k1", "k2", "k3", "rho-k1", "rho-k3"]
"""The "rho-" forms multiply by the differentiable ratio to the policy that sampled (2512.02556)."""

Place = Literal["reward", "sequence", "loss", "none"]
"""Off each token's reward; summed, off the sequence's reward before any baseline; in the loss."""

CLAMP = 20.0
"""Log-ratios are clamped to this, never the KL: a clamped KL has no gradient just where it is large."""


def log_ratio(logp: Tensor, other: Tensor) -> Tensor:
    """logp - other, clamped to +-20."""
    return (logp - other).clamp(-CLAMP, CLAMP)


def estimate(ratio: Tensor, kind: Estimator, rho: Tensor | None = None) -> Tensor:
    """Per-token KL(pi||ref) from l = logpi - logref on samples of pi, in nats.

    k1 = l, k2 = l^2/2, k3 = exp(-l) - 1 + l (joschu.net/blog/kl-approx.html). "rho-" forms take
    ``rho`` = pi/pi_old with its gradient: the gradient is then that of KL(pi||ref), off-policy too.
    """
    if kind == "k2":
        return ratio**2 / 2
    plain = ratio if kind in ("k1", "rho-k1") else torch.expm1(-ratio) + ratio
    if kind in ("k1", "k3"):
        return plain
    assert rho is not None, f"{kind} needs the ratio to the sampling policy"
    return rho * plain


class FixedKL(Config):
    """A constant coefficient."""

    kind: Literal["fixed"] = "fixed"
    beta: float = Field(default=0.05, ge=0.0)
    """Nats of reward a nat of KL costs."""


class AdaptiveKL(Config):
    """beta *= 1 + clip(KL/target - 1, +-0.2) * n / horizon (1909.08593)."""

    kind: Literal["adaptive"] = "adaptive"
    beta: float = Field(default=0.05, gt=0.0)
    target: float = Field(default=6.0, gt=0.0)
    """Mean over completions of the summed KL, nats."""
    horizon: float = Field(default=10_000.0, gt=0.0)
    """Completions over which a full correction is made."""


class HalvingKL(Config):
    """KL < target/1.5: beta/2; KL > 1.5 target: 2 beta (1707.06347)."""

    kind: Literal["halving"] = "halving"
    beta: float = Field(default=0.05, gt=0.0)
    target: float = Field(default=6.0, gt=0.0)


class RangeKL(Config):
    """Keeps the sequence KL inside [low, high]; stops the run when it stays above."""

    kind: Literal["range"] = "range"
    beta: float = Field(default=0.05, gt=0.0)
    low: float = Field(default=1.0, ge=0.0)
    high: float = Field(default=10.0, gt=0.0)
    factor: float = Field(default=1.2, gt=1.0)
    """beta is multiplied by this above ``high`` and divided by it below ``low``."""
    patience: int = Field(default=20, gt=0)
    """Steps in a row above ``high`` after which training stops."""

    @model_validator(mode="after")
    def _order(self) -> RangeKL:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self


def _kind(value: Any) -> str:
    """A control without a kind is a fixed one, so that ``kl: {beta: 0.1}`` says enough."""
    if isinstance(value, dict):
        return str(cast("dict[str, Any]", value).get("kind", "fixed"))
    return str(getattr(value, "kind", "fixed"))


KLControl = Annotated[
    Annotated[FixedKL, Tag("fixed")]
    | Annotated[AdaptiveKL, Tag("adaptive")]
    | Annotated[HalvingKL, Tag("halving")]
    | Annotated[RangeKL, Tag("range")],
    Discriminator(_kind),
]


class KLController:
    """The coefficient and what moves it; its state is part of the run state."""

    def __init__(self, config: FixedKL | AdaptiveKL | HalvingKL | RangeKL) -> None:
        self.config = config
        self.beta = config.beta
        self.above = 0

    def update(self, kl: float, n: int) -> None:
        """Move beta after ``n`` completions whose mean summed KL was ``kl`` nats."""
        c = self.config
        if isinstance(c, AdaptiveKL):
            error = min(max(kl / c.target - 1.0, -0.2), 0.2)
            self.beta *= 1.0 + error * n / c.horizon
        elif isinstance(c, HalvingKL):
            if kl < c.target / 1.5:
                self.beta /= 2
            elif kl > c.target * 1.5:
                self.beta *= 2
        elif isinstance(c, RangeKL):
            self.above = self.above + 1 if kl > c.high else 0
            if kl > c.high:
                self.beta *= c.factor
            elif kl < c.low:
                self.beta /= c.factor

    @property
    def exhausted(self) -> bool:
        """Whether a range guard has seen ``patience`` steps in a row above its range."""
        return isinstance(self.config, RangeKL) and self.above >= self.config.patience

    def state(self) -> dict[str, float]:
        """What resume needs."""
        return {"beta": self.beta, "above": self.above}

    def load(self, state: dict[str, float]) -> None:
        """Undo ``state``."""
        self.beta, self.above = float(state["beta"]), int(state["above"])
