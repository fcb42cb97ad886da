"""Policy-gradient methods: one loss, of which a method is a choice of parts.

A method is a ``PolicyMethod`` with its own defaults; its file in ``methods/`` has the formula beside
them. Formulas and the table of methods: ALGORITHMS sections 7, 8, 9 and 16.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from pydantic import Field, ValidationInfo, field_validator, model_validator
from torch import Tensor

from trimtab.config import Config, Kind, read_renamed
from trimtab.data.pack import Output, Pack
from trimtab.objectives.advantage import AdvantageSpec
from trimtab.objectives.kl import KL, FixedKL, KLSpec, estimate, log_ratio
from trimtab.objectives.mismatch import MismatchSpec, correct_mismatch, sampler_metrics
from trimtab.objectives.ratio import (
    ClipSpec,
    Level,
    Surrogate,
    clip_fraction,
    clipped,
    level_ratios,
    ratios,
)
from trimtab.objectives.terms import (
    Aggregation,
    Counts,
    Loss,
    Metrics,
    Term,
    aggregate,
    default_counts,
    detached,
)
from trimtab.objectives.value import ValueSpec, value_loss


class FilterSpec(Config):
    """Which groups are trained on."""

    dynamic_sampling: bool = False
    """Drop groups whose unshaped rewards are all equal, and sample other prompts in their place."""
    reward: str | None = None
    """The reward part that must differ; the unshaped sum when not given."""
    max_tries: int = Field(default=5, gt=0)
    """Batches sampled per iteration at most; then it trains on the groups it has."""


class LengthSpec(Config):
    """What happens to completions at the length limit."""

    missing_eos_penalty: float = Field(default=0.0, ge=0.0)
    """Subtracted from the reward of a completion that the length limit cut."""
    overlong: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Soft overlong punishment over the last share of the length limit (2503.14476); 0 is off."""
    mask_truncated: bool = False
    """Mask cut completions in the loss; their reward still counts in the baseline."""


class UpdateSpec(Config):
    """Optimiser steps on each batch of rollouts."""

    epochs: int = Field(default=1, gt=0)
    """Passes over the batch."""
    minibatches: int = Field(default=1, gt=0)
    """Optimiser steps per pass."""
    target_kl: float | None = Field(default=None, gt=0.0)
    """Skip the remaining updates on a batch once mean(rho - 1 - log rho) exceeds 1.5 times this."""

    @property
    def steps(self) -> int:
        """Optimiser steps per batch of rollouts."""
        return self.epochs * self.minibatches


class PolicyMethod(Kind):
    """A policy-gradient method. A subclass is one with its own defaults and ``type: Literal["name"]``.

    L = aggregate(w * surrogate(rho, A)) + kl.beta * aggregate(KL) - entropy_coef * aggregate(H)
        + value.coef * value loss,
    where A is the advantage, rho the importance ratio and w corrects for the sampler's log-probs.

    A group of keys that is given in part keeps the method's own defaults for the rest:
    ``{type: gspo, clip: {low: 1e-3}}`` has GSPO's ``clip.high``.
    """

    usual: ClassVar[str] = "ppo"
    renamed: ClassVar[dict[str, str]] = {
        "advantage": "advantage.estimator",
        "values": "advantage.values",
        "baseline": "advantage.baseline",
        "scale": "advantage.scale",
        "scale_eps": "advantage.eps",
        "gamma": "advantage.gamma",
        "lam": "advantage.lam",
        "whiten_advantages": "advantage.whiten",
        "whiten_rewards": "advantage.whiten_rewards",
        "clip_low": "clip.low",
        "clip_high": "clip.high",
        "dual_clip": "clip.dual",
        "cap": "clip.cap",
        "kl_place": "kl.place",
        "kl_estimator": "kl.estimator",
        "mismatch": "mismatch.correction",
        "mismatch_low": "mismatch.low",
        "mismatch_high": "mismatch.high",
        "anchor": "mismatch.anchor",
        "off_policy_delta": "mismatch.off_policy_delta",
        "value_coef": "value.coef",
        "value_clip": "value.clip",
        "dynamic_sampling": "filter.dynamic_sampling",
        "filter_on": "filter.reward",
        "max_tries": "filter.max_tries",
        "missing_eos_penalty": "length.missing_eos_penalty",
        "overlong": "length.overlong",
        "mask_truncated": "length.mask_truncated",
        "epochs": "updates.epochs",
        "minibatches": "updates.minibatches",
        "target_kl": "updates.target_kl",
    }

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Refuse fields of the release before, which would have no effect."""
        for name in vars(cls).get("__annotations__", {}):
            if name in cls.renamed and name not in PolicyMethod.model_fields:
                raise TypeError(f"{cls.__name__}.{name}: the field is now {cls.renamed[name]}")

    group_size: int = Field(default=1, gt=0)
    """Completions per prompt."""
    advantage: AdvantageSpec = AdvantageSpec()
    surrogate: Surrogate = "clipped"
    ratio: Level = "token"
    clip: ClipSpec = ClipSpec()
    kl: KL = FixedKL()
    mismatch: MismatchSpec = MismatchSpec()
    aggregation: Aggregation = "token-mean"
    max_length: int = Field(default=0, ge=0)
    """The constant of "seq-mean-token-sum-norm"; 0 takes the sampling limit."""
    entropy_coef: float = Field(default=0.0, ge=0.0)
    value: ValueSpec = ValueSpec()
    filter: FilterSpec = FilterSpec()
    length: LengthSpec = LengthSpec()
    updates: UpdateSpec = UpdateSpec()

    @field_validator(
        "advantage", "clip", "kl", "mismatch", "value", "filter", "length", "updates", mode="before"
    )
    @classmethod
    def _merge_defaults(cls, group: Any, info: ValidationInfo) -> Any:
        """The keys given in a group, over the method's own defaults of that group."""
        default: Config = cls.model_fields[str(info.field_name)].default
        if info.field_name == "advantage" and callable(group):
            group = {"estimator": group}
        if isinstance(group, Config):
            kind = type(group)
            names = group.model_fields_set | {"type"} & set(kind.model_fields)
            changes = {name: getattr(group, name) for name in names}
            rest = default.model_dump(include=set(kind.model_fields))
            return kind.model_validate(rest | changes)
        if isinstance(group, dict):
            kind = type(default)
            changes = cast("dict[str, Any]", read_renamed(kind, group))
            if isinstance(default, KLSpec) and "type" in changes:
                kind = KLSpec.named(str(changes["type"]))  # has other keys than the default's
            return default.model_dump(include=set(kind.model_fields)) | changes
        return group

    @field_validator("group_size", mode="before")
    @classmethod
    def _default_group_size(cls, value: Any) -> Any:
        """null stands for the method's default, as ``group: null`` did in earlier configurations."""
        return cls.model_fields["group_size"].default if value is None else value

    @model_validator(mode="after")
    def _sensible(self) -> PolicyMethod:
        for wrong, why in self._refusals():
            if wrong:
                raise ValueError(f"{self.name}: {why}")
        return self

    def _refusals(self) -> list[tuple[bool, str]]:
        """Combinations of groups that run and mean nothing, each with its reason."""
        sequence = self.ratio in ("sequence", "sequence-token")
        low, high = self.clip.low, self.clip.high
        return [
            (
                sequence and self.surrogate == "clipped" and max(low, high) > 0.05,
                f"clip.low {low} and clip.high {high} never clip the ratio of a whole sequence, "
                "whose logarithm is a mean; GSPO's are 3e-4 and 4e-4",
            ),
            (
                self.surrogate == "weighted" and self.clip.cap <= 1.0,
                f"clip.cap {self.clip.cap} would cut every weight; it is 1 + epsilon, for example 5",
            ),
            (
                self.surrogate == "weighted" and sequence,
                "surrogate 'weighted' is defined on token ratios; take ratio: token",
            ),
            (
                self.surrogate == "likelihood" and self.updates.steps > 1,
                "surrogate 'likelihood' has no ratio to correct for weights that have moved; leave "
                "updates.epochs and updates.minibatches at 1, or take surrogate: clipped",
            ),
            (
                self.clip.dual is not None and self.surrogate != "clipped",
                "clip.dual needs surrogate: clipped",
            ),
            (
                self.advantage.estimator == "process" and self.kl.in_reward,
                "advantage.estimator: process standardises step rewards over the group, so the KL "
                "belongs in the loss; take kl.place: loss",
            ),
            (
                self.needs_groups and self.group_size < 2,
                f"group_size: {self.group_size} is too small: the baseline is the mean reward over "
                "several completions of one prompt. Use 2 or more",
            ),
        ]

    @property
    def needs_critic(self) -> bool:
        """Whether a critic is trained."""
        return self.advantage.needs_critic

    @property
    def needs_groups(self) -> bool:
        """Whether every prompt must have two completions or more."""
        return self.advantage.needs_groups or self.filter.dynamic_sampling

    @property
    def needs_reference(self) -> bool:
        """Whether the KL to a reference is used anywhere."""
        fixed_at_zero = isinstance(self.kl, FixedKL) and self.kl.beta == 0.0
        return self.kl.place != "none" and not fixed_at_zero

    @property
    def needs_norms(self) -> bool:
        """Whether the loss reads log-sum-exps of logits."""
        return False

    def counts(self, pack: Pack) -> Counts:
        return default_counts(pack)

    def __call__(self, out: Output, pack: Pack) -> Loss:
        """The policy's loss where there is ``logp_C``, the critic's where there is ``value_C``:
        they may come of two forwards. The first needs ``entropy_C`` and the tokens' "advantage",
        "old_logp" unless the weights are those that sampled, "ref_logp" with a KL in the loss,
        "sampler_logp" where the sampler's log-probs matter; the second "value" and "return"."""
        loss = Loss({}) if out.logp_C is None else self._policy_loss(out.logp_C, out, pack)
        if out.value_C is not None:
            old_C, return_C = pack.tokens["value"], pack.tokens["return"]
            critic_C = value_loss(out.value_C, old_C, return_C, self.value.clip)
            loss.terms["value/loss"] = aggregate(critic_C, pack, "token-mean", coef=self.value.coef)
        return loss

    def _policy_loss(self, logp_C: Tensor, out: Output, pack: Pack) -> Loss:
        assert out.entropy_C is not None
        advantage_C = pack.tokens["advantage"]
        old_C = pack.tokens.get("old_logp", logp_C.detach())
        anchor_C = pack.tokens["sampler_logp"] if self.mismatch.anchor == "sampler" else old_C

        ratio_C = level_ratios(logp_C, anchor_C, pack, self.ratio)
        surrogate_C = self.surrogate_loss(logp_C, ratio_C, advantage_C)
        loss_C, metrics = correct_mismatch(surrogate_C, logp_C, old_C, pack, self.mismatch)
        terms = {"policy/loss": self._aggregate(loss_C, pack)}
        if self.kl.place == "loss" and self.needs_reference:
            to_ref_C = log_ratio(logp_C, pack.tokens["ref_logp"])
            kl_C = estimate(to_ref_C, self.kl.estimator, ratios(logp_C, old_C))
            terms["policy/kl_loss"] = self._aggregate(kl_C, pack, self.kl.beta)
            metrics["policy/kl"] = (detached(to_ref_C), "completions")
        if self.entropy_coef:
            terms["policy/entropy_bonus"] = self._aggregate(out.entropy_C, pack, -self.entropy_coef)

        metrics |= self._metrics(logp_C, old_C, ratio_C, out.entropy_C, pack)
        return Loss(terms, metrics)

    def _aggregate(self, loss_C: Tensor, pack: Pack, coef: float = 1.0) -> Term:
        return aggregate(loss_C, pack, self.aggregation, self.max_length, coef)

    def surrogate_loss(self, logp: Tensor, ratio: Tensor, advantage: Tensor) -> Tensor:
        """The policy's part [C] before corrections and aggregation."""
        if self.surrogate == "likelihood":
            return -advantage * logp
        if self.surrogate == "weighted":
            return -ratio.detach().clamp(max=self.clip.cap) * advantage * logp
        return clipped(ratio, advantage, self.clip.low, self.clip.high, self.clip.dual)

    def clip_fraction(self, ratio: Tensor, advantage: Tensor) -> Tensor:
        """1 where a bound of the surrogate is active [C]."""
        if self.surrogate == "likelihood":
            return torch.zeros_like(ratio)
        if self.surrogate == "weighted":
            return (ratio > self.clip.cap).float()
        return clip_fraction(ratio, advantage, self.clip.low, self.clip.high)

    def _metrics(
        self, logp_C: Tensor, old_C: Tensor, ratio_C: Tensor, entropy_C: Tensor, pack: Pack
    ) -> Metrics:
        """How far the policy has moved, how much is clipped, entropy, and the sampler's distance."""
        metrics: Metrics = {}
        if "sampler_logp" in pack.tokens:
            metrics |= sampler_metrics(old_C - pack.tokens["sampler_logp"], pack)
        moved_C = log_ratio(logp_C, old_C).detach()
        sequence_C = level_ratios(logp_C.detach(), old_C, pack, "sequence").log()
        active_C = self.clip_fraction(ratio_C, pack.tokens["advantage"])
        metrics |= {
            "policy/clip_fraction": (detached(active_C), "tokens"),
            "policy/ratio": (detached(ratio_C), "tokens"),
            "policy/approx_kl": (detached(moved_C.exp() - 1 - moved_C), "tokens"),
            "policy/approx_kl_sequence": (detached(sequence_C.exp() - 1 - sequence_C), "tokens"),
            "policy/entropy": (detached(entropy_C), "tokens"),
        }
        return metrics
