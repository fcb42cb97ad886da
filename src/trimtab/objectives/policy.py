"""Policy-gradient methods as points in one space, and the parts they are made of.

A method is a ``PolicyMethod`` with other defaults: its file in ``methods/`` holds nothing but
them, the paper, and the mathematics in the method's own words. Formulas and the table of points:
ALGORITHMS sections 7, 8, 9 and 16.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from trimtab.config import Kind
from trimtab.data.pack import Output, Pack
from trimtab.objectives.advantage import Baseline, Scale
from trimtab.objectives.kl import CLAMP, Estimator, FixedKL, KLControl, Place, estimate, log_ratio
from trimtab.objectives.mismatch import (
    Mismatch,
    mismatch_weights,
    sampler_figures,
    stale_rows,
)
from trimtab.objectives.tensors import segment_sum
from trimtab.objectives.terms import (
    Aggregation,
    Counts,
    Loss,
    Per,
    aggregate,
    default_counts,
    detached,
)
from trimtab.objectives.value import value_loss

Surrogate = Literal["clipped", "weighted", "likelihood"]
"""-min(rho A, clip(rho) A) | -sg(min(rho, cap)) A log pi | -A log pi."""

Ratio = Literal["token", "sequence", "sequence-token", "product"]
"""Each token's own | the geometric mean of its completion's | that mean in value, the token's own
in gradient | the product over the completion."""


def ratios(logp_C: Tensor, old_C: Tensor) -> Tensor:
    """rho = exp(logpi - logpi_old), the difference clamped to +-20."""
    return torch.exp(log_ratio(logp_C, old_C))


def level_ratios(logp_C: Tensor, old_C: Tensor, pack: Pack, level: Ratio) -> Tensor:
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


class PolicyMethod(Kind):
    """Every part of a policy-gradient method; a subclass is a method: the same with its defaults.

    Each declares ``type: Literal["name"]``, which YAML names it by.

    L = aggregate(w * surrogate) + beta * aggregate(KL) + value_coef * value loss
        - entropy_coef * aggregate(H), where w corrects for the sampler's own log-probs.
    """

    usual: ClassVar[str] = "ppo"

    group_size: int = Field(default=1, gt=0)
    """Completions per prompt."""
    advantage: str = "returns"
    """"gae": generalised advantages over a critic. "returns": reward-to-go of the baselined reward.
    "process": step scores standardised over the group (2402.03300), beside the baselined reward
    where rewards have weight. Or a function by import path,
    called as ``f(rewards_BT, mask_BT, final_B, group_B) -> advantages_BT``."""
    values: Literal["critic", "monte-carlo"] = "critic"
    """Where "gae" takes state values from: a trained critic, or continuations from each step of the
    completion (VinePPO, 2410.01679)."""
    baseline: Baseline = "none"
    scale: Scale = "none"
    scale_eps: float = Field(default=1e-6, ge=0.0)
    gamma: float = Field(default=1.0, gt=0.0, le=1.0)
    lam: float = Field(default=0.95, ge=0.0, le=1.0)
    whiten_advantages: bool = False
    """To mean 0 and variance 1 over all tokens of the global batch."""
    whiten_rewards: bool = False
    """Scale sequence rewards to variance 1, keeping their mean."""
    surrogate: Surrogate = "clipped"
    ratio: Ratio = "token"
    anchor: Literal["trainer", "sampler"] = "trainer"
    """Whose log-probs the ratio is taken to: the trainer's own at sampling time, or the sampler's."""
    clip_low: float = Field(default=0.2, gt=0.0, le=1.0)
    clip_high: float = Field(default=0.2, gt=0.0)
    dual_clip: float | None = Field(default=None, gt=1.0)
    """c of dual clip, usually 3; off by default."""
    cap: float = 5.0
    """Upper bound of the weight of surrogate "weighted": 1 + epsilon, not epsilon."""
    mismatch: Mismatch = "none"
    """How the difference between trainer's and sampler's log-probs is corrected: see
    ``objectives.mismatch``."""
    mismatch_low: float = Field(default=0.5, ge=0.0)
    mismatch_high: float = Field(default=2.0, gt=0.0)
    off_policy_delta: float | None = Field(default=None, gt=0.0)
    """Leave out completions with A < 0 whose mean log(mu/pi) is above this (2512.02556)."""
    kl_place: Place = "none"
    kl_estimator: Estimator = "k1"
    kl: KLControl = FixedKL()
    """The coefficient of the KL to the reference."""
    aggregation: Aggregation = "token-mean"
    max_length: int = Field(default=0, ge=0)
    """The constant of "seq-mean-token-sum-norm"; 0 takes the sampling limit."""
    entropy_coef: float = Field(default=0.0, ge=0.0)
    value_coef: float = Field(default=0.1, ge=0.0)
    value_clip: float | None = Field(default=0.2, gt=0.0)
    dynamic_sampling: bool = False
    """Keep only groups whose unshaped rewards differ, and sample others in place of the rest."""
    filter_on: str | None = None
    """The reward part that dynamic sampling looks at; the unshaped sum when not given."""
    max_tries: int = Field(default=5, gt=0)
    """Batches sampled for one step at most; then it trains on what was found."""
    missing_eos_penalty: float = Field(default=0.0, ge=0.0)
    """Taken off the reward of a completion that the length limit cut."""
    overlong: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Soft overlong punishment over the last share of the length limit (2503.14476); 0 is off."""
    mask_truncated: bool = False
    """Leave cut completions out of the loss; they keep their reward in the baseline."""
    epochs: int = Field(default=1, gt=0)
    """Passes over each batch of rollouts."""
    minibatches: int = Field(default=1, gt=0)
    """Optimiser steps a pass."""
    target_kl: float | None = Field(default=None, gt=0.0)
    """Skip the remaining updates on a batch once mean(rho - 1 - log rho) exceeds 1.5 times this."""

    @property
    def needs_critic(self) -> bool:
        """Whether a critic is trained."""
        return self.advantage == "gae" and self.values == "critic"

    @property
    def needs_groups(self) -> bool:
        """Whether every prompt must have two completions or more."""
        local = ("group", "leave-one-out")
        return (
            self.baseline in local or self.scale in local or self.dynamic_sampling
        ) or self.advantage == "process"

    @property
    def needs_reference(self) -> bool:
        """Whether the KL to a reference is used anywhere."""
        return self.kl_place != "none" and not (
            isinstance(self.kl, FixedKL) and self.kl.beta == 0.0
        )

    @property
    def updates(self) -> int:
        """Optimiser steps on each batch of rollouts."""
        return self.epochs * self.minibatches

    @field_validator("group_size", mode="before")
    @classmethod
    def _default_group_size(cls, value: Any) -> Any:
        """null stands for the method's default, as ``group: null`` did in earlier configurations."""
        return cls.model_fields["group_size"].default if value is None else value

    @model_validator(mode="after")
    def _sense(self) -> PolicyMethod:
        for wrong, why in self._refusals():
            if wrong:
                raise ValueError(f"{self.name}: {why}")
        return self

    def _refusals(self) -> list[tuple[bool, str]]:
        """Combinations that run and mean nothing, each with its reason."""
        sequence = self.ratio in ("sequence", "sequence-token")
        known = ("gae", "returns", "process")
        return [
            (
                self.advantage not in known and ":" not in self.advantage,
                f"advantage {self.advantage!r} is none of {', '.join(known)} and no import path "
                "(package.module:name or file.py:name)",
            ),
            (
                self.kl_place == "loss" and self.kl_estimator == "k1",
                "kl_estimator k1 in the loss has an expected gradient of exactly 0; take k2, k3, "
                "rho-k1 or rho-k3, or kl_place: reward",
            ),
            (
                self.kl_place in ("reward", "sequence") and self.kl_estimator not in ("k1", "k3"),
                f"kl_estimator {self.kl_estimator} is for the loss; in the reward take k1 (or k3)",
            ),
            (
                sequence
                and self.surrogate == "clipped"
                and max(self.clip_low, self.clip_high) > 0.05,
                f"clip_low {self.clip_low} and clip_high {self.clip_high} never clip the ratio of a "
                "whole sequence, whose logarithm is a mean; GSPO's are 3e-4 and 4e-4",
            ),
            (
                self.surrogate == "weighted" and self.cap <= 1.0,
                f"cap {self.cap} would cut every weight; it is 1 + epsilon, for example 5",
            ),
            (
                self.surrogate == "weighted" and sequence,
                "surrogate 'weighted' is defined on token ratios; take ratio: token",
            ),
            (
                self.surrogate == "likelihood" and self.updates > 1,
                "surrogate 'likelihood' has no ratio to correct for weights that have moved; "
                "leave epochs and minibatches at 1, or take surrogate: clipped",
            ),
            (
                self.dual_clip is not None and self.surrogate != "clipped",
                "dual_clip needs surrogate: clipped",
            ),
            (
                self.mismatch != "none" and self.anchor == "sampler",
                "mismatch corrects for the sampler's log-probs, and anchor: sampler does so already; "
                "take one",
            ),
            (
                self.mismatch_low >= self.mismatch_high,
                f"mismatch_low ({self.mismatch_low}) must be below mismatch_high "
                f"({self.mismatch_high})",
            ),
            (
                self.advantage == "gae" and (self.baseline != "none" or self.scale != "none"),
                "the critic is the baseline of advantage: gae; leave baseline and scale at none",
            ),
            (
                self.advantage == "process" and self.kl_place in ("reward", "sequence"),
                "advantage: process standardises step rewards over the group, so the KL belongs in "
                "the loss; take kl_place: loss",
            ),
            (
                self.values == "monte-carlo" and self.advantage != "gae",
                "values: monte-carlo are state values for advantage: gae",
            ),
            (
                self.needs_groups and self.group_size < 2,
                f"group_size: {self.group_size} is too small: the baseline is the mean reward over "
                "several completions of one prompt. Use 2 or more",
            ),
        ]

    def counts(self, pack: Pack) -> Counts:
        """See ``Objective``."""
        return default_counts(pack)

    def __call__(self, out: Output, pack: Pack) -> Loss:
        """The policy's loss where there is ``logp_C``, the critic's where there is ``value_C``:
        they may come of two forwards. The first needs ``entropy_C`` and the tokens' "advantage",
        "old_logp" unless the weights are those that sampled, "ref_logp" with a KL in the loss,
        "sampler_logp" where the sampler's log-probs matter; the second "value" and "return"."""
        loss = Loss({}, {}) if out.logp_C is None else self._policy(out.logp_C, out, pack)
        if out.value_C is not None:
            tokens = pack.tokens
            critic = value_loss(out.value_C, tokens["value"], tokens["return"], self.value_clip)
            loss.terms["value/loss"] = aggregate(critic, pack, "token-mean")
            loss.terms["value/loss"].coef = self.value_coef
        return loss

    def _policy(self, logp: Tensor, out: Output, pack: Pack) -> Loss:
        assert out.entropy_C is not None
        advantage = pack.tokens["advantage"]
        old = pack.tokens.get("old_logp", logp.detach())
        anchor = pack.tokens["sampler_logp"] if self.anchor == "sampler" else old
        ratio = level_ratios(logp, anchor, pack, self.ratio)
        surrogate = self.surrogate_loss(logp, ratio, advantage)
        metrics: dict[str, tuple[Tensor, Per]] = {}
        if self.mismatch != "none":
            weight = mismatch_weights(
                old - pack.tokens["sampler_logp"],
                pack,
                self.mismatch,
                self.mismatch_low,
                self.mismatch_high,
            )
            surrogate = surrogate * weight
            metrics["mismatch/weight"] = (detached(weight), "tokens")
            metrics["mismatch/dropped"] = (detached((weight == 0).float()), "tokens")
        if self.off_policy_delta is not None:
            stale = stale_rows(
                pack.tokens["sampler_logp"] - logp.detach(), advantage, pack, self.off_policy_delta
            )
            surrogate = torch.where(stale, torch.zeros_like(surrogate), surrogate)
            metrics["mismatch/stale"] = (detached(stale.float()), "tokens")
        terms = {"policy/loss": aggregate(surrogate, pack, self.aggregation, self.max_length)}
        if self.kl_place == "loss" and self.needs_reference:
            to_ref = log_ratio(logp, pack.tokens["ref_logp"])
            kl = estimate(to_ref, self.kl_estimator, ratios(logp, old))
            terms["policy/kl_loss"] = aggregate(kl, pack, self.aggregation, self.max_length)
            terms["policy/kl_loss"].coef = self.kl.beta
            metrics["policy/kl"] = (detached(to_ref), "completions")
        if self.entropy_coef:
            bonus = aggregate(out.entropy_C, pack, self.aggregation, self.max_length)
            bonus.coef = -self.entropy_coef
            terms["policy/entropy_bonus"] = bonus
        if "sampler_logp" in pack.tokens:
            metrics |= sampler_figures(old - pack.tokens["sampler_logp"], pack)
        moved = log_ratio(logp, old).detach()
        metrics |= {
            "policy/clip_fraction": (detached(self.cut(ratio, advantage)), "tokens"),
            "policy/ratio": (detached(ratio), "tokens"),
            "policy/approx_kl": (detached(moved.exp() - 1 - moved), "tokens"),
            "policy/entropy": (detached(out.entropy_C), "tokens"),
        }
        return Loss(terms, metrics)

    def surrogate_loss(self, logp: Tensor, ratio: Tensor, advantage: Tensor) -> Tensor:
        """The policy's part [C] before weights and aggregation."""
        if self.surrogate == "likelihood":
            return -advantage * logp
        if self.surrogate == "weighted":
            return -ratio.detach().clamp(max=self.cap) * advantage * logp
        return clipped(ratio, advantage, self.clip_low, self.clip_high, self.dual_clip)

    def cut(self, ratio: Tensor, advantage: Tensor) -> Tensor:
        """1 where a bound takes hold [C]."""
        if self.surrogate == "likelihood":
            return torch.zeros_like(ratio)
        if self.surrogate == "weighted":
            return (ratio > self.cap).float()
        return clip_fraction(ratio, advantage, self.clip_low, self.clip_high)
