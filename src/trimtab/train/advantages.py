"""From rewards to credit: the advantage of every token of a batch of rollouts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trimtab.config import import_function
from trimtab.errors import ConfigError
from trimtab.objectives.advantage import gae, group_advantages, last_token, returns, token_rewards
from trimtab.objectives.kl import estimate, log_ratio
from trimtab.objectives.policy import PolicyMethod
from trimtab.objectives.process_reward import group_process_advantages
from trimtab.objectives.tensors import masked_mean, pad_rows, unpad_rows, whiten
from trimtab.objectives.value import explained_variance
from trimtab.types import Completion, Group


def assign(groups: Sequence[Group], method: PolicyMethod, beta: float) -> dict[str, float]:
    """Put "advantage" (and "return" with values) on the tokens of every completion.

    In this order: the summed KL off the reward where it is placed there; the baseline and its
    scale; token rewards (the KL of each token, dense rewards, the rest at the last token); the
    estimator; whitening over the batch; masks of truncated completions.

    Args:
        groups: With ``reward`` on every completion, and the token columns the method needs.
        method: The point in the space.
        beta: The coefficient of the KL as it stands.

    Returns:
        Metrics: KL, values, rewards.
    """
    done = [c for g in groups for c in g.completions]
    owner = torch.tensor([i for i, g in enumerate(groups) for _ in g.completions])
    mask = pad_rows([c.mask for c in done])
    final = torch.tensor([_reward(c) for c in done], dtype=torch.float32)
    metrics = {"reward/final": float(final.mean())}
    if method.whiten_rewards:
        final = whiten(final, torch.ones_like(final, dtype=torch.bool), keep_mean=True)
    kl = torch.zeros(mask.shape)
    if method.kl_place in ("reward", "sequence") and method.needs_reference:
        old = pad_rows([c.tokens["old_logp"] for c in done])
        to_ref = log_ratio(old, pad_rows([c.tokens["ref_logp"] for c in done]))
        kl = torch.where(mask, estimate(to_ref, method.kl_estimator), kl)
        summed = torch.where(mask, to_ref, torch.zeros_like(kl)).sum(1)
        metrics["objective/kl"] = float(summed.mean())
        metrics["objective/kl_reward"] = -beta * float(kl.sum(1).mean())
    if method.kl_place == "sequence":
        final = final - beta * kl.sum(1)
    final = group_advantages(final, owner, method.baseline, method.scale, method.scale_eps)
    rewards = token_rewards(final, kl, mask, beta if method.kl_place == "reward" else 0.0)
    if all("dense" in c.tokens for c in done):
        rewards = rewards + torch.where(mask, pad_rows([c.tokens["dense"] for c in done]), 0.0)
    if method.advantage == "process":
        steps = [row for rows in group_process_advantages(groups) for row in rows]
        advantages = torch.where(mask, final[:, None] + pad_rows(steps), 0.0)
    else:
        advantages = _estimate(done, method, rewards, mask, final, owner, metrics)
    if method.whiten_advantages:
        advantages = whiten(advantages, mask)
    _put(done, "advantage", advantages)
    metrics["advantage/std"] = float(advantages[mask].std(unbiased=False)) if mask.any() else 0.0
    if all("old_logp" in c.tokens for c in done):
        drift = log_ratio(
            pad_rows([c.tokens["old_logp"] for c in done]),
            pad_rows([c.tokens["sampler_logp"] for c in done]),
        )
        metrics["sampler/drift_max"] = float(torch.where(mask, drift, 0.0).abs().max())
    if method.mask_truncated:
        for c in done:
            if c.finish == "length":
                c.mask = np.zeros_like(c.mask)
    return metrics


def _estimate(
    done: list[Completion],
    method: PolicyMethod,
    rewards: Tensor,
    mask: Tensor,
    final: Tensor,
    owner: Tensor,
    metrics: dict[str, float],
) -> Tensor:
    """Advantages [B, T] from token rewards [B, T]."""
    if method.values == "monte-carlo":
        # The states' values are of the raw reward: what was added to it since, and the KL, are
        # credited as they come.
        raw = torch.tensor([_raw(c) for c in done], dtype=torch.float32)
        added = token_rewards(-raw, torch.zeros_like(rewards), mask, 0.0) + rewards
        gains = pad_rows([c.tokens["state_advantage"] for c in done])
        return torch.where(mask, gains, 0.0) + returns(added, mask, method.gamma)
    if method.advantage == "gae":
        value = pad_rows([c.tokens["value"] for c in done])
        advantages, target = gae(rewards, value, mask, method.gamma, method.lam)
        _put(done, "return", target)
        rows = torch.arange(len(done))
        metrics |= {
            "value/mean": float(masked_mean(value, mask)),
            "value/last": float(masked_mean(value[rows, last_token(mask)], mask.any(1))),
            "value/std": float(value[mask].std(unbiased=False)) if mask.any() else 0.0,
            "value/return_std": float(target[mask].std(unbiased=False)) if mask.any() else 0.0,
            "value/explained_variance": explained_variance(value[mask], target[mask]),
        }
        return advantages
    if method.advantage == "returns":
        return returns(rewards, mask, method.gamma)
    found = import_function(method.advantage, "method.advantage")(rewards, mask, final, owner)
    if not isinstance(found, Tensor) or found.shape != rewards.shape:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ConfigError(
            f"method.advantage: {method.advantage} must return a tensor of shape "
            f"{tuple(rewards.shape)}, but returned {got}"
        )
    return torch.where(mask, found, torch.zeros_like(found))


def _reward(c: Completion) -> float:
    assert c.reward is not None, "completions that could not be scored are left out before"
    return c.reward


def _raw(c: Completion) -> float:
    return _reward(c) if c.raw_reward is None else c.raw_reward


def _put(done: list[Completion], name: str, rows: Tensor) -> None:
    for c, row in zip(done, unpad_rows(rows, [len(c) for c in done]), strict=True):
        c.tokens[name] = row
