"""From rewards to advantages: one number for every token of a batch of rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(slots=True)
class _Batch:
    """Completions of a batch of rollouts, padded to one rectangle."""

    completions: list[Completion]
    group_B: Tensor
    """Index of each completion's group."""
    mask_BT: Tensor
    """True on trained tokens."""
    episode_B: Tensor
    """Index of each completion's episode, counted over all groups."""
    first_E: list[int]
    """Index of each episode's first completion."""

    def has(self, name: str) -> bool:
        """Whether every completion has the token column ``name``."""
        return all(name in c.tokens for c in self.completions)

    def column(self, name: str) -> Tensor:
        """The token column ``name``: [B, T]."""
        return pad_rows([c.tokens[name] for c in self.completions])

    def summed(self, values_B: Tensor) -> Tensor:
        """Sums over the completions of each episode [E]."""
        if len(self.first_E) == len(values_B):
            return values_B
        return values_B.new_zeros(len(self.first_E)).index_add(0, self.episode_B, values_B)

    def write(self, name: str, values_BT: Tensor) -> None:
        """Put ``values_BT`` on the tokens as the column ``name``."""
        rows = unpad_rows(values_BT, [len(c) for c in self.completions])
        for c, row in zip(self.completions, rows, strict=True):
            c.tokens[name] = row

    def std(self, values_BT: Tensor) -> float:
        """Population standard deviation over trained tokens; 0 without any."""
        on = self.mask_BT
        return float(values_BT[on].std(unbiased=False)) if on.any() else 0.0


def assign_advantages(
    groups: Sequence[Group], method: PolicyMethod, beta: float
) -> dict[str, float]:
    """Put "advantage" (and "return" with values) on the tokens of every completion.

    In this order: the summed KL is subtracted from the reward where it is placed there; the
    baseline and its scale, in which an episode counts once; token rewards (the KL of each token, dense rewards, the rest at the last
    token); the estimator; whitening over the batch; masks of truncated completions.

    Args:
        groups: With ``reward`` on every completion, and the token columns the method needs.

    Returns:
        Metrics: KL, values, rewards. "objective/rlhf_reward" is what is maximised, the mean over episodes:
        the reward and the dense rewards, less the KL where it is subtracted from them.
    """
    spec = method.advantage
    completions = [c for g in groups for c in g.completions]
    group_B = torch.tensor([i for i, g in enumerate(groups) for _ in g.completions])
    batch = _Batch(
        completions, group_B, pad_rows([c.mask for c in completions]), *_episodes(groups)
    )
    mask_BT = batch.mask_BT

    rewards = [_reward(completions[i]) for i in batch.first_E]
    reward_E = torch.tensor(rewards, dtype=torch.float32)
    metrics = {"reward/final": float(reward_E.mean())}
    if spec.whiten_rewards:
        reward_E = whiten(reward_E, torch.ones_like(reward_E, dtype=torch.bool), keep_mean=True)
    kl_BT = _kl(batch, method, beta, metrics)
    if method.kl.place == "sequence":
        reward_E = reward_E - beta * batch.summed(kl_BT.sum(1))
    group_E = group_B[batch.first_E]
    final_E = group_advantages(reward_E, group_E, spec.baseline, spec.scale, spec.eps)
    final_B = final_E[batch.episode_B]
    rewards_BT = token_rewards(
        final_B, kl_BT, mask_BT, beta if method.kl.place == "reward" else 0.0
    )
    metrics["objective/rlhf_reward"] = metrics["reward/final"] + metrics.get(
        "objective/kl_reward", 0.0
    )
    if batch.has("dense"):
        dense_BT = torch.where(mask_BT, batch.column("dense"), 0.0)
        rewards_BT = rewards_BT + dense_BT
        metrics["objective/rlhf_reward"] += float(batch.summed(dense_BT.sum(1)).mean())
    if spec.estimator == "process":
        steps = [row for rows in group_process_advantages(groups) for row in rows]
        advantages_BT = torch.where(mask_BT, final_B[:, None] + pad_rows(steps), 0.0)
    else:
        advantages_BT = _estimate(batch, method, rewards_BT, final_B, metrics)
    if spec.whiten:
        advantages_BT = whiten(advantages_BT, mask_BT)
    batch.write("advantage", advantages_BT)

    metrics["advantage/std"] = batch.std(advantages_BT)
    if batch.has("old_logp"):
        drift_BT = log_ratio(batch.column("old_logp"), batch.column("sampler_logp"))
        metrics["sampler/drift_max"] = float(torch.where(mask_BT, drift_BT, 0.0).abs().max())
    if method.length.mask_truncated:
        for c in completions:
            if c.truncated:
                c.mask = np.zeros_like(c.mask)
    return metrics


def _episodes(groups: Sequence[Group]) -> tuple[Tensor, list[int]]:
    """The episode of each completion, and the first completion of each episode."""
    numbers = {id(c): i for i, e in enumerate(e for g in groups for e in g.episodes) for c in e}
    episode_B = [numbers[id(c)] for g in groups for c in g.completions]
    first_E = {episode: i for i, episode in reversed(list(enumerate(episode_B)))}
    return torch.tensor(episode_B), [first_E[e] for e in range(len(first_E))]


def _kl(batch: _Batch, method: PolicyMethod, beta: float, metrics: dict[str, float]) -> Tensor:
    """KL to the reference on every token [B, T], where rewards pay for it; else 0."""
    kl_BT = torch.zeros(batch.mask_BT.shape)
    if not (method.kl.in_reward and method.needs_reference):
        return kl_BT
    to_ref_BT = log_ratio(batch.column("old_logp"), batch.column("ref_logp"))
    kl_BT = torch.where(batch.mask_BT, estimate(to_ref_BT, method.kl.estimator), kl_BT)
    summed_B = torch.where(batch.mask_BT, to_ref_BT, torch.zeros_like(kl_BT)).sum(1)
    metrics["objective/kl"] = float(batch.summed(summed_B).mean())
    metrics["objective/kl_reward"] = -beta * float(batch.summed(kl_BT.sum(1)).mean())
    return kl_BT


def _estimate(
    batch: _Batch,
    method: PolicyMethod,
    rewards_BT: Tensor,
    final_B: Tensor,
    metrics: dict[str, float],
) -> Tensor:
    """Advantages [B, T] from token rewards [B, T]."""
    spec, mask_BT = method.advantage, batch.mask_BT
    if spec.values == "monte-carlo":
        # The states' values are of the raw reward: what shaping added to it and the KL are credited
        # where they occur.
        raw_B = torch.tensor([_raw_reward(c) for c in batch.completions], dtype=torch.float32)
        added_BT = token_rewards(-raw_B, torch.zeros_like(rewards_BT), mask_BT, 0.0) + rewards_BT
        gains_BT = torch.where(mask_BT, batch.column("state_advantage"), 0.0)
        return gains_BT + returns(added_BT, mask_BT, spec.gamma)
    if spec.estimator == "gae":
        value_BT = batch.column("value")
        advantages_BT, return_BT = gae(rewards_BT, value_BT, mask_BT, spec.gamma, spec.lam)
        batch.write("return", return_BT)
        rows = torch.arange(len(batch.completions))
        last_B = value_BT[rows, last_token(mask_BT)]
        metrics |= {
            "value/mean": float(masked_mean(value_BT, mask_BT)),
            "value/last": float(masked_mean(last_B, mask_BT.any(1))),
            "value/std": batch.std(value_BT),
            "value/return_std": batch.std(return_BT),
            "value/explained_variance": explained_variance(value_BT[mask_BT], return_BT[mask_BT]),
        }
        return advantages_BT
    if spec.estimator == "returns":
        return returns(rewards_BT, mask_BT, spec.gamma)
    function = import_function(spec.estimator, "method.advantage.estimator")
    result = function(rewards_BT, mask_BT, final_B, batch.group_B)
    if not isinstance(result, Tensor) or result.shape != rewards_BT.shape:
        got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise ConfigError(
            f"method.advantage.estimator: {spec.estimator} must return a tensor of shape "
            f"{tuple(rewards_BT.shape)}, but returned {got}"
        )
    return torch.where(mask_BT, result, torch.zeros_like(result))


def _reward(c: Completion) -> float:
    assert c.reward is not None, "completions that could not be scored are dropped before"
    return c.reward


def _raw_reward(c: Completion) -> float:
    return _reward(c) if c.raw_reward is None else c.raw_reward
