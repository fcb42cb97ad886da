"""Corrections for a sampler whose log-probs differ from the trainer's (ALGORITHMS section 9).

w = pi_old / mu, the trainer's own probability of a sampled token over the engine's. It multiplies
the clipped loss without a gradient; denominators stay those of before any masking.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from trimtab.data.pack import Pack
from trimtab.objectives.kl import CLAMP
from trimtab.objectives.tensors import segment_sum
from trimtab.objectives.terms import Per

Mismatch = Literal["none", "token", "mask", "sequence", "geometric"]
"""No correction; truncated weight min(w, high) (TIS); w inside [low, high] and else 0 (IcePop);
the completion's product of w, 0 above high; w where the completion's geometric mean of w lies in
[low, high] and else 0."""


def mismatch_weights(log_C: Tensor, pack: Pack, mode: Mismatch, low: float, high: float) -> Tensor:
    """Weight [C] of each trained token, off the graph.

    Args:
        log_C: log pi_old - log mu.
        pack: Where the tokens are.
        mode: See ``Mismatch``.
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


def sampler_figures(log_C: Tensor, pack: Pack) -> dict[str, tuple[Tensor, Per]]:
    """How far the sampler was from the trainer: "sampler/kl", KL(mu || pi_old) a token by k3, nats,
    and the first two moments of the completions' weights pi_old / mu, from which the effective
    sample size follows.

    Args:
        log_C: log pi_old - log mu.
        pack: Where the tokens are.
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
    """True [C] on completions with A < 0 that the policy has since left (2512.02556).

    Args:
        log_C: log mu - log pi, off the graph.
        advantage_C: Their advantages; the completion's mean decides its sign.
        pack: Where the tokens are.
        delta: Nats a token.
    """
    count = len(pack.trained_B)
    length = pack.trained_B.clamp(min=1.0)
    gone = segment_sum(log_C, pack.owner_C, count) / length > delta
    bad = segment_sum(advantage_C, pack.owner_C, count) < 0
    return (gone & bad)[pack.owner_C]
