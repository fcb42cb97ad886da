"""KL to the reference: estimators and the controllers of its coefficient (ALGORITHMS section 5)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, SerializeAsAny, model_validator
from torch import Tensor

from trimtab.config import Kind, by_type

Estimator = Literal["k1", "k2", "k3", "rho-k1", "rho-k3"]
"""The "rho-" forms multiply by the differentiable ratio to the policy that sampled (2512.02556)."""

Place = Literal["reward", "sequence", "loss", "none"]
"""Subtracted from each token's reward; summed and subtracted from the sequence reward before any
baseline; added to the loss; not used."""

CLAMP = 20.0
"""Log-ratios are clamped to this, never the KL: a clamped KL has no gradient where it is large."""


def log_ratio(logp: Tensor, other: Tensor) -> Tensor:
    """logp - other, clamped to +-20."""
    return (logp - other).clamp(-CLAMP, CLAMP)


def estimate(ratio: Tensor, estimator: Estimator, rho: Tensor | None = None) -> Tensor:
    """Per-token KL(pi||ref) from l = logpi - logref on samples of pi, in nats.

    k1 = l, k2 = l^2/2, k3 = exp(-l) - 1 + l (joschu.net/blog/kl-approx.html). "rho-" forms take
    ``rho`` = pi/pi_old with its gradient: the gradient is then that of KL(pi||ref), off-policy too.
    """
    if estimator == "k2":
        return ratio**2 / 2
    plain = ratio if estimator in ("k1", "rho-k1") else torch.expm1(-ratio) + ratio
    if estimator in ("k1", "k3"):
        return plain
    assert rho is not None, f"{estimator} needs the ratio to the sampling policy"
    return rho * plain


class KLSpec(Kind):
    """Where the KL to the reference enters, how it is estimated, and its coefficient.

    A subclass is a controller of the coefficient.
    """

    usual: ClassVar[str] = "fixed"
    renamed: ClassVar[dict[str, str]] = {"kind": "type"}

    place: Place = "none"
    estimator: Estimator = "k1"
    beta: float = Field(default=0.05, ge=0.0)
    """The coefficient at the start: reward per nat of KL."""

    @model_validator(mode="after")
    def _sensible(self) -> KLSpec:
        if self.place == "loss" and self.estimator == "k1":
            raise ValueError(
                "estimator k1 in the loss has an expected gradient of exactly 0; take k2, k3, "
                "rho-k1 or rho-k3, or place: reward"
            )
        if self.place in ("reward", "sequence") and self.estimator not in ("k1", "k3"):
            raise ValueError(
                f"estimator {self.estimator} is for the loss; in the reward take k1 (or k3)"
            )
        return self

    @property
    def in_reward(self) -> bool:
        """Whether it is subtracted from rewards."""
        return self.place in ("reward", "sequence")

    @abstractmethod
    def next_beta(self, beta: float, kl: float, n: int) -> float:
        """The coefficient after ``n`` completions whose mean summed KL was ``kl`` nats."""


class FixedKL(KLSpec):
    """A constant coefficient."""

    type: Literal["fixed"] = "fixed"

    def next_beta(self, beta: float, kl: float, n: int) -> float:
        return beta


class AdaptiveKL(KLSpec):
    """beta *= 1 + clip(KL/target - 1, +-0.2) * n / horizon (1909.08593)."""

    type: Literal["adaptive"] = "adaptive"
    beta: float = Field(default=0.05, gt=0.0)
    target: float = Field(default=6.0, gt=0.0)
    """Mean over completions of the summed KL, nats."""
    horizon: float = Field(default=10_000.0, gt=0.0)
    """Completions over which a full correction is made."""

    def next_beta(self, beta: float, kl: float, n: int) -> float:
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        return beta * (1.0 + error * n / self.horizon)


class HalvingKL(KLSpec):
    """KL < target/1.5: beta/2; KL > 1.5 target: 2 beta (1707.06347)."""

    type: Literal["halving"] = "halving"
    beta: float = Field(default=0.05, gt=0.0)
    target: float = Field(default=6.0, gt=0.0)

    def next_beta(self, beta: float, kl: float, n: int) -> float:
        if kl < self.target / 1.5:
            return beta / 2
        return beta * 2 if kl > self.target * 1.5 else beta


class RangeKL(KLSpec):
    """Keeps the sequence KL inside [low, high]; stops the run when it stays above."""

    type: Literal["range"] = "range"
    beta: float = Field(default=0.05, gt=0.0)
    low: float = Field(default=1.0, ge=0.0)
    high: float = Field(default=10.0, gt=0.0)
    factor: float = Field(default=1.2, gt=1.0)
    """beta is multiplied by this above ``high`` and divided by it below ``low``."""
    patience: int = Field(default=20, gt=0)
    """Iterations in a row above ``high`` after which training stops."""

    @model_validator(mode="after")
    def _ordered(self) -> RangeKL:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self

    def next_beta(self, beta: float, kl: float, n: int) -> float:
        if kl > self.high:
            return beta * self.factor
        return beta / self.factor if kl < self.low else beta


KL_TYPES: dict[str, type[KLSpec]] = {
    "fixed": FixedKL,
    "adaptive": AdaptiveKL,
    "halving": HalvingKL,
    "range": RangeKL,
}

KL = Annotated[SerializeAsAny[KLSpec], by_type(KLSpec, KL_TYPES)]
"""The KL as a key of a configuration: ``{type: NAME, …}``, "fixed" when no type is given."""


class KLController:
    """The coefficient as training moves it; its state is part of the run state."""

    def __init__(self, config: KLSpec) -> None:
        self.config = config
        self.beta = config.beta
        self.above = 0

    def update(self, kl: float, n: int) -> None:
        """Move beta after ``n`` completions whose mean summed KL was ``kl`` nats."""
        self.beta = self.config.next_beta(self.beta, kl, n)
        if isinstance(self.config, RangeKL):
            self.above = self.above + 1 if kl > self.config.high else 0

    @property
    def exhausted(self) -> bool:
        """Whether the KL was above its range for ``patience`` iterations in a row."""
        return isinstance(self.config, RangeKL) and self.above >= self.config.patience

    def state(self) -> dict[str, float]:
        """What resume needs."""
        return {"beta": self.beta, "above": self.above}

    def load(self, state: dict[str, float]) -> None:
        """Restore what ``state`` returned."""
        self.beta, self.above = float(state["beta"]), int(state["above"])
