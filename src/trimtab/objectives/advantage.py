"""Advantages: baselines, returns and generalised advantage estimates (ALGORITHMS sections 6, 8, 9)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from trimtab.config import Config, FunctionPath

Baseline = Literal["none", "batch", "group", "leave-one-out"]
"""What is subtracted from a completion's reward: nothing, or the mean reward of the batch, of its
group, of the other completions of its group."""

Scale = Literal["none", "group", "leave-one-out", "batch"]
"""Whose standard deviation (unbiased) divides the difference."""


class AdvantageSpec(Config):
    """How rewards become the advantage of every token."""

    estimator: FunctionPath = "returns"
    """"gae": generalised advantage estimates on state values. "returns": reward-to-go of the
    baselined reward. "process": step scores standardised over the group (2402.03300), plus the
    baselined reward where rewards have weight. Or a function, in YAML by its import path, called as
    ``f(rewards_BT, mask_BT, final_B, group_B) -> advantages_BT``."""
    values: Literal["critic", "monte-carlo"] = "critic"
    """Where "gae" takes state values from: a trained critic, or continuations sampled from each
    step of the completion (VinePPO, 2410.01679)."""
    baseline: Baseline = "none"
    scale: Scale = "none"
    eps: float = Field(default=1e-6, ge=0.0)
    """Added to the standard deviation of ``scale``."""
    gamma: float = Field(default=1.0, gt=0.0, le=1.0)
    lam: float = Field(default=0.95, ge=0.0, le=1.0)
    whiten: bool = False
    """To mean 0 and variance 1 over all tokens of the global batch."""
    whiten_rewards: bool = False
    """Scale sequence rewards to variance 1, keeping their mean."""

    @model_validator(mode="after")
    def _sensible(self) -> AdvantageSpec:
        names = ("gae", "returns", "process")
        if self.estimator not in names and ":" not in self.estimator:
            raise ValueError(
                f"estimator {self.estimator!r} is none of {', '.join(names)} and no import path "
                "(package.module:name or file.py:name)"
            )
        if self.estimator == "gae" and (self.baseline != "none" or self.scale != "none"):
            raise ValueError(
                "the critic is the baseline of estimator: gae; leave baseline and scale at none"
            )
        if self.values == "monte-carlo" and self.estimator != "gae":
            raise ValueError("values: monte-carlo are state values for estimator: gae")
        return self

    @property
    def needs_critic(self) -> bool:
        """Whether a critic is trained."""
        return self.estimator == "gae" and self.values == "critic"

    @property
    def needs_groups(self) -> bool:
        """Whether completions of one prompt are compared, so that there must be two or more."""
        within = ("group", "leave-one-out")
        return self.baseline in within or self.scale in within or self.estimator == "process"


def gae(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and returns, both [B, T] (1506.02438).

    delta_t = r_t + gamma V_next - V_t; A_t = delta_t + gamma lam A_next, backwards over tokens
    with mask True only: V and A are carried across gaps (tool tokens, user turns), and V after
    the last is 0. returns = A + V, before any whitening. Entries under the mask are 0.
    """
    batch, width = rewards_BT.shape
    next_value = rewards_BT.new_zeros(batch)
    carried = rewards_BT.new_zeros(batch)
    advantages = torch.zeros_like(rewards_BT)
    for t in range(width - 1, -1, -1):
        here = mask_BT[:, t]
        delta = rewards_BT[:, t] + gamma * next_value - values_BT[:, t]
        step = delta + gamma * lam * carried
        carried = torch.where(here, step, carried)
        next_value = torch.where(here, values_BT[:, t], next_value)
        advantages[:, t] = torch.where(here, step, torch.zeros_like(step))
    returns = torch.where(mask_BT, advantages + values_BT, torch.zeros_like(values_BT))
    return advantages, returns


def last_token(mask_BT: Tensor) -> Tensor:
    """Index [B] of each row's last token with mask True; 0 for a row without any."""
    at = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    return torch.where(mask_BT, at, torch.zeros_like(at)).max(dim=1).values


def token_rewards(final_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, beta: float) -> Tensor:
    """r_t = -beta k1_t + [t = last masked token] R: [B, T]; 0 under the mask."""
    rewards = torch.where(mask_BT, -beta * kl_BT, torch.zeros_like(kl_BT))
    rows = torch.arange(len(final_B), device=final_B.device)
    some = mask_BT.any(1)
    rewards[rows[some], last_token(mask_BT)[some]] += final_B[some].to(rewards.dtype)
    return rewards


def implicit_rewards(policy_BT: Tensor, reference_BT: Tensor, beta: float) -> Tensor:
    """DPO's implicit token rewards beta (logpi - logref) (2404.12358)."""
    return beta * (policy_BT - reference_BT)


def group_advantages(
    rewards_B: Tensor,
    group_B: Tensor,
    baseline: Baseline,
    scale: Scale = "none",
    eps: float = 1e-6,
) -> Tensor:
    """Rewards against their baseline, scaled: [B] (ALGORITHMS sections 8 and 9).

    GRPO (2402.03300) is "group" and "group", Dr.GRPO (2503.20783) "group" and "none", RLOO
    (2402.14740) "leave-one-out" and "none". A group whose rewards are all equal gets exactly 0:
    what rounding leaves over would be blown up by ``eps``.

    Args:
        baseline: See ``Baseline``; the two group forms need two completions in every group.
    """
    _, index = torch.unique(group_B, return_inverse=True)
    count = int(index.max()) + 1 if len(index) else 0
    r = rewards_B.double()

    def per_group(x: Tensor) -> Tensor:
        return torch.zeros(count, dtype=x.dtype).index_add(0, index, x)[index]

    n = per_group(torch.ones_like(r))
    if baseline in ("group", "leave-one-out") or scale in ("group", "leave-one-out"):
        assert bool((n > 1).all()), "a group baseline needs two completions in every group"
    mean = per_group(r) / n
    if baseline == "none":
        out = r.clone()
    elif baseline == "batch":
        out = r - r.mean()
    elif baseline == "group":
        out = r - mean
    else:
        out = (r - mean) * n / (n - 1)
    if scale == "group":
        out = out / (torch.sqrt(per_group((r - mean) ** 2) / (n - 1)) + eps)
    elif scale == "leave-one-out":
        out = out / _others_std(r, mean, n, per_group((r - mean) ** 2), eps)
    elif scale == "batch" and len(r) > 1:
        out = out / (r.std() + eps)
    if baseline in ("group", "leave-one-out"):
        top = torch.full((count,), -torch.inf, dtype=r.dtype).scatter_reduce(0, index, r, "amax")
        low = torch.full((count,), torch.inf, dtype=r.dtype).scatter_reduce(0, index, r, "amin")
        out = torch.where((top == low)[index], torch.zeros_like(out), out)
    return out.to(rewards_B.dtype)


def _others_std(r: Tensor, mean: Tensor, n: Tensor, squares: Tensor, eps: float) -> Tensor:
    """Unbiased deviation of the others in each one's group; 1 where they do not vary."""
    # Sum of squares about the others' own mean, without the one left out.
    left = squares - (r - mean) ** 2 * n / (n - 1)
    spread = torch.sqrt((left / (n - 2).clamp(min=1)).clamp(min=0.0))
    return torch.where(spread > 1e-9, spread + eps, torch.ones_like(spread))


def returns(rewards_BT: Tensor, mask_BT: Tensor, gamma: float) -> Tensor:
    """Discounted reward-to-go over tokens with mask True, carried across gaps: [B, T]."""
    return gae(rewards_BT, torch.zeros_like(rewards_BT), mask_BT, gamma, 1.0)[0]
