"""A direct method and an advantage of one's own, in a file: what ``custom-method.yaml`` trains with.

Nothing is registered: the recipe names them by path, ``type: trimtab.recipes.custom_method:APOZero`` and
``advantage: "trimtab.recipes.custom_method:median"``. ``docs/methods.md`` goes through it line by line.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.objectives.pairs import Pairs, Scaled


class APOZero(Scaled):
    """1 - s(beta a) + s(beta b): APO-zero (2408.06266), a and b the log-ratios to the reference.

    DPO asks for a distance between two answers, and often gets it by making both less likely.
    Here the chosen answer must rise and the rejected one fall, each by itself.
    """

    def loss(self, p: Pairs) -> Tensor:
        """[P], a loss for each pair."""
        up, down = self.implicit(p)  # beta a, beta b
        return 1.0 - torch.sigmoid(up) + torch.sigmoid(down)


def median(rewards_BT: Tensor, mask_BT: Tensor, final_B: Tensor, group_B: Tensor) -> Tensor:
    """A = R - median of its group, on every token: one answer far off moves no other's advantage.

    Args:
        rewards_BT: Token rewards: any KL, step rewards, and ``final_B`` at the last token.
        mask_BT: True on trained tokens.
        final_B: The reward of each answer, less the method's own baseline.
        group_B: Which prompt it answers.
    """
    out_B = torch.zeros_like(final_B)
    for group in group_B.unique():
        in_group = group_B == group
        out_B[in_group] = final_B[in_group] - final_B[in_group].quantile(0.5)
    return out_B[:, None].expand(rewards_BT.shape)
