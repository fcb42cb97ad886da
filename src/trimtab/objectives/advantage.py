"""Credit: returns and generalised advantages on padded rollouts (ALGORITHMS section 6)."""

from __future__ import annotations

import torch
from torch import Tensor


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
