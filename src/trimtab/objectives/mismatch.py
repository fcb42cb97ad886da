"""Corrections for a sampler whose log-probs differ from the trainer's (ALGORITHMS section 9).

w = pi_old / mu, the trainer's own probability of a sampled token over the engine's. It multiplies
the clipped loss without a gradient; denominators stay those of before any masking.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from trimtab.config import Config
from trimtab.data.pack import Pack
from trimtab.objectives.kl import CLAMP
from trimtab.objectives.tensors import segment_sum
from trimtab.objectives.terms import Metrics, detached

Correction = Literal["none", "token", "mask", "sequence", "geometric"]
"""No correction; truncated weight min(w, high) (TIS); w inside [low, high] and else 0 (IcePop);
the completion's product of w, 0 above high; w where the completion's geometric mean of w lies in
[low, high] and else 0."""


class MismatchSpec(Config):
    """How the difference between the sampler's and the trainer's log-probs is corrected."""

    correction: Correction = "none"
    low: float = Field(default=0.5, ge=0.0)
    high: float = Field(default=2.0, gt=0.0)
    """Bounds of the weight pi_old / mu; see ``Correction`` for what happens outside."""
    anchor: Literal["trainer", "sampler"] = "trainer"
    """Whose log-probs the importance ratio is taken to: the trainer's own at sampling time, or the
    sampler's."""
    off_policy_delta: float | None = Field(default=None, gt=0.0)
    """Mask completions with A < 0 whose mean log(mu/pi) is above this (2512.02556)."""

    @model_validator(mode="after")
    def _sensible(self) -> MismatchSpec:
        if self.correction != "none" and self.anchor == "sampler":
            raise ValueError(
                "correction corrects for the sampler's log-probs, and anchor: sampler does so "
                "already; take one"
            )
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self


def correct_mismatch(
    loss_C: Tensor, logp_C: Tensor, old_C: Tensor, pack: Pack, spec: MismatchSpec
) -> tuple[Tensor, Metrics]:
    """Token losses [C] with the correction's weights and masks, and its metrics.

    Args:
        logp_C: log pi, with its gradient.
        old_C: log pi_old.
        pack: Its tokens' "sampler_logp" is log mu, its "advantage" is A.
    """
    metrics: Metrics = {}
    if spec.correction != "none":
        log_C = old_C - pack.tokens["sampler_logp"]
        weight_C = mismatch_weights(log_C, pack, spec.correction, spec.low, spec.high)
        loss_C = loss_C * weight_C
        metrics["mismatch/weight"] = (detached(weight_C), "tokens")
        metrics["mismatch/dropped"] = (detached((weight_C == 0).float()), "tokens")
    if spec.off_policy_delta is not None:
        log_C = pack.tokens["sampler_logp"] - logp_C.detach()
        stale_C = stale_rows(log_C, pack.tokens["advantage"], pack, spec.off_policy_delta)
        loss_C = torch.where(stale_C, torch.zeros_like(loss_C), loss_C)
        metrics["mismatch/stale"] = (detached(stale_C.float()), "tokens")
    return loss_C, metrics


def mismatch_weights(
    log_C: Tensor, pack: Pack, mode: Correction, low: float, high: float
) -> Tensor:
    """Weight [C] of each trained token, off the graph.

    Args:
        log_C: log pi_old - log mu.
        low, high: Bounds of w, of its product, or of its geometric mean.
    """
    log_C = log_C.detach().clamp(-CLAMP, CLAMP)
    w = log_C.exp()
    if mode == "none":
        return torch.ones_like(w)
    if mode == "token":
        return w.clamp(max=high)
    if mode == "mask":
        return torch.where((w >= low) & (w <= high), w, torch.zeros_like(w))
    sum_B = segment_sum(log_C, pack.owner_C, len(pack.trained_B))
    if mode == "sequence":
        product = sum_B.clamp(-CLAMP, CLAMP).exp()[pack.owner_C]
        return torch.where(product <= high, product, torch.zeros_like(product))
    mean = (sum_B / pack.trained_B.clamp(min=1.0)).exp()[pack.owner_C]
    return torch.where((mean >= low) & (mean <= high), w, torch.zeros_like(w))


def sampler_metrics(log_C: Tensor, pack: Pack) -> Metrics:
    """Distance of the sampler from the trainer: "sampler/kl", KL(mu || pi_old) per token by k3, nats,
    and the first two moments of the completions' weights pi_old / mu, from which the effective
    sample size follows.

    Args:
        log_C: log pi_old - log mu.
    """
    log_C = log_C.detach().clamp(-CLAMP, CLAMP)
    weight = segment_sum(log_C, pack.owner_C, len(pack.trained_B)).clamp(-CLAMP, CLAMP).exp()
    weight = torch.where(pack.trained_B > 0, weight, torch.zeros_like(weight))
    return {
        "sampler/kl": ((log_C.exp() - 1 - log_C).sum(), "tokens"),
        "sampler/weight": (weight.sum(), "completions"),
        "sampler/weight_squared": (weight.square().sum(), "completions"),
    }


def stale_rows(log_C: Tensor, advantage_C: Tensor, pack: Pack, delta: float) -> Tensor:
    """True [C] on completions with A < 0 that have become unlikely under the policy (2512.02556).

    Args:
        log_C: log mu - log pi, off the graph.
        advantage_C: Their advantages; the completion's mean decides its sign.
        delta: Nats per token.
    """
    count = len(pack.trained_B)
    length = pack.trained_B.clamp(min=1.0)
    unlikely = segment_sum(log_C, pack.owner_C, count) / length > delta
    negative = segment_sum(advantage_C, pack.owner_C, count) < 0
    return (unlikely & negative)[pack.owner_C]
