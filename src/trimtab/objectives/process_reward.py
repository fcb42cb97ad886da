"""Process rewards: scores of reasoning steps, and advantages from them (ALGORITHMS section 4)."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from trimtab.config import Config
from trimtab.data.pack import Output, Pack
from trimtab.objectives.terms import Counts, Loss, aggregate, default_counts, detached
from trimtab.types import Floats, Group

Aggregate = Literal["product", "min", "last", "mean"]


class StepLoss(Config):
    """Two-class cross-entropy at step ends: -y log p - (1-y) log(1-p) (2305.20050, 2312.08935).

    With a head of two logits p = sigmoid(z_1 - z_0), so soft labels y in [0, 1] need no other
    form. "seq-mean-token-mean" weights every solution the same, however many steps it has.
    """

    type: Literal["steps"] = "steps"
    aggregation: Literal["token-mean", "seq-mean-token-mean"] = "token-mean"

    def counts(self, pack: Pack) -> Counts:
        """See ``Objective``; the trained tokens are the step ends."""
        return default_counts(pack)

    def __call__(self, out: Output, pack: Pack) -> Loss:
        """Cross-entropy; needs ``step_C`` and the column "step_label"."""
        assert out.step_C is not None
        y_C = pack.tokens["step_label"].to(out.step_C.dtype)
        loss_C = binary_cross_entropy_with_logits(out.step_C, y_C, reduction="none")
        z = out.step_C.detach()
        right = torch.where(y_C == 0.5, 0.5, ((z > 0) == (y_C > 0.5)).float())
        return Loss(
            {"loss": aggregate(loss_C, pack, self.aggregation)},
            {
                "accuracy": (detached(right), "tokens"),
                "p_correct": (detached(torch.sigmoid(z)), "tokens"),
                "label": (detached(y_C), "tokens"),
            },
        )


def aggregate_steps(p_S: Tensor, how: Aggregate) -> Tensor:
    """P(step correct) [S] as one score; the product is taken in log space (2305.20050)."""
    if how == "product":
        return torch.exp(torch.log(p_S.clamp(min=1e-30)).sum())
    if how == "min":
        return p_S.min()
    return p_S[-1] if how == "last" else p_S.mean()


def step_differences(p_S: Tensor) -> Tensor:
    """Dense rewards p_k - p_{k-1}, p_0 = 0: they telescope, so more steps do not earn more."""
    return torch.diff(p_S, prepend=p_S.new_zeros(1))


def step_advantages(rewards_S: Tensor, ends_S: Tensor, length: int) -> Tensor:
    """A_t = sum of the step rewards that end at or after t (2402.03300): [length].

    Args:
        rewards_S: Standardised step rewards.
        ends_S: Index of each step's last token, from 0.
    """
    dense = torch.zeros(length, dtype=rewards_S.dtype).index_add(0, ends_S, rewards_S)
    return torch.flip(torch.cumsum(torch.flip(dense, [0]), 0), [0])


def state_advantages(values_S: Tensor, ends_S: Tensor, length: int) -> Tensor:
    """V(after the step) - V(before it) on every token of a step (VinePPO, 2410.01679): [length].

    Args:
        values_S: Values [S + 1] before the first step and after each.
        ends_S: Index of each step's last token, the last one ``length - 1``.
    """
    gains = values_S.diff()
    step = torch.searchsorted(ends_S, torch.arange(length))
    return gains[step]


def group_process_advantages(groups: Sequence[Group]) -> list[list[Floats]]:
    """Process supervision of GRPO (2402.03300): for each group, advantages [T] of each completion.

    All step scores of a group are standardised jointly, (r - mean) / (std + 1e-6) with the
    unbiased deviation, and 0 where all are equal; then A_t adds up the steps ending at or after
    t. Reads the columns "step_end" and "step_score" that ``ProcessReward`` writes; a completion
    without a step end (its steps could not be scored) is left out of the statistics and gets 0.
    """
    advantages: list[list[Floats]] = []
    for group in groups:
        ends = [np.flatnonzero(c.tokens["step_end"] > 0) for c in group.completions]
        parts = [
            c.tokens["step_score"][e].astype(np.float64)
            for c, e in zip(group.completions, ends, strict=True)
        ]
        pooled = np.concatenate([np.zeros(0), *parts])
        flat = pooled.size == 0 or pooled.max() == pooled.min()
        mean, spread = (0.0, 1.0) if flat else (pooled.mean(), pooled.std(ddof=1) + 1e-6)
        rows: list[Floats] = []
        for c, e, scores in zip(group.completions, ends, parts, strict=True):
            level = np.zeros_like(scores) if flat else (scores - mean) / spread
            row = step_advantages(torch.from_numpy(level), torch.from_numpy(e), len(c))
            rows.append(row.numpy().astype(np.float32))
        advantages.append(rows)
    return advantages
