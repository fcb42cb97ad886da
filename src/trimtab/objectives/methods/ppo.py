"""PPO with a critic: Schulman et al. 1707.06347, for language as in Ouyang et al. 2203.02155.

The point in the space: GAE, whitened | token ratio | clip .2/.2 | KL k1 in the reward |
token-mean | no filter | penalty for a missing EOS | critic and reference.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trimtab.config import Config
from trimtab.data.pack import Output, Pack
from trimtab.objectives.kl import FixedKL, KLControl, log_ratio
from trimtab.objectives.policy import clip_fraction, clipped, ratios
from trimtab.objectives.terms import Aggregation, Counts, Loss, aggregate, default_counts, detached
from trimtab.objectives.value import value_loss


class PPO(Config):
    """L = -min(rho A, clip(rho) A) + value_coef * value loss - entropy_coef * H."""

    type: Literal["ppo"] = "ppo"
    clip_low: float = Field(default=0.2, gt=0.0, lt=1.0)
    clip_high: float = Field(default=0.2, gt=0.0)
    dual_clip: float | None = Field(default=None, gt=1.0)
    """c of dual clip, usually 3; off by default."""
    aggregation: Aggregation = "token-mean"
    gamma: float = Field(default=1.0, gt=0.0, le=1.0)
    lam: float = Field(default=0.95, ge=0.0, le=1.0)
    whiten_advantages: bool = True
    """To mean 0 and variance 1 over all tokens of the global batch."""
    whiten_rewards: bool = False
    """Scale sequence rewards to variance 1, keeping their mean."""
    value_coef: float = Field(default=0.1, ge=0.0)
    value_clip: float | None = Field(default=0.2, gt=0.0)
    entropy_coef: float = Field(default=0.0, ge=0.0)
    epochs: int = Field(default=4, gt=0)
    """Passes over each batch of rollouts."""
    minibatches: int = Field(default=1, gt=0)
    """Optimiser steps a pass."""
    target_kl: float | None = Field(default=None, gt=0.0)
    """Skip the remaining updates on a batch once mean(rho - 1 - log rho) exceeds 1.5 times this."""
    kl: KLControl = FixedKL()
    """The coefficient of the KL to the reference, taken off the reward."""
    missing_eos_penalty: float = Field(default=0.0, ge=0.0)
    """Taken off the reward of a completion that the length limit cut."""
    mask_truncated: bool = False
    """Leave cut completions out of the loss; they keep their reward."""

    def counts(self, pack: Pack) -> Counts:
        """See ``Objective``."""
        return default_counts(pack)

    def __call__(self, out: Output, pack: Pack) -> Loss:
        """Needs ``logp_C``, ``entropy_C``, ``value_C`` and the tokens' "old_logp", "advantage",
        "value" and "return"."""
        assert out.logp_C is not None and out.entropy_C is not None and out.value_C is not None
        old, advantage = pack.tokens["old_logp"], pack.tokens["advantage"]
        ratio = ratios(out.logp_C, old)
        surrogate = clipped(ratio, advantage, self.clip_low, self.clip_high, self.dual_clip)
        critic = value_loss(
            out.value_C, pack.tokens["value"], pack.tokens["return"], self.value_clip
        )
        terms = {
            "policy/loss": aggregate(surrogate, pack, self.aggregation),
            "value/loss": aggregate(critic, pack, "token-mean"),
        }
        terms["value/loss"].coef = self.value_coef
        if self.entropy_coef:
            terms["policy/entropy_bonus"] = aggregate(out.entropy_C, pack, self.aggregation)
            terms["policy/entropy_bonus"].coef = -self.entropy_coef
        hit = clip_fraction(ratio, advantage, self.clip_low, self.clip_high)
        moved = log_ratio(out.logp_C, old).detach()
        return Loss(
            terms,
            {
                "policy/clip_fraction": (detached(hit), "tokens"),
                "policy/ratio": (detached(ratio), "tokens"),
                "policy/approx_kl": (detached(moved.exp() - 1 - moved), "tokens"),
                "policy/entropy": (detached(out.entropy_C), "tokens"),
            },
        )
