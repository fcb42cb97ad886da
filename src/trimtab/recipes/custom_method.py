"""A custom direct method and a custom advantage; ``custom-method.yaml`` trains with them.

Neither is registered. The recipe names them by import path: ``type: trimtab.recipes.custom_method:APOZero``
and ``advantage: {estimator: "trimtab.recipes.custom_method:median"}``. ``docs/methods.md`` explains them.
"""

import torch
from torch import Tensor

from trimtab.objectives.pairs import Pairs, Scaled


class APOZero(Scaled):
    """1 - s(beta a) + s(beta b): APO-zero (2408.06266), a and b the log-ratios to the reference.

    DPO increases the difference between two log-ratios, often by making both completions less likely.
    Here the chosen completion must become more likely and the rejected one less likely.
    """

    def loss(self, p: Pairs) -> Tensor:
        """[P], the loss of each pair."""
        up, down = self.implicit(p)  # beta a, beta b
        return 1.0 - torch.sigmoid(up) + torch.sigmoid(down)


def median(rewards_BT: Tensor, mask_BT: Tensor, final_B: Tensor, group_B: Tensor) -> Tensor:
    """A = R - median of its group, on every token: an outlier does not move the other advantages.

    Args:
        rewards_BT: Token rewards: any KL, step rewards, and ``final_B`` at the last token.
        mask_BT: True on trained tokens.
        final_B: The reward of each completion after the method's baseline and scale.
        group_B: The index of each completion's prompt.
    """
    out_B = torch.zeros_like(final_B)
    for group in group_B.unique():
        in_group = group_B == group
        out_B[in_group] = final_B[in_group] - final_B[in_group].quantile(0.5)
    return out_B[:, None].expand(rewards_BT.shape)
