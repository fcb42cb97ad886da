"""What the oracle tests share: short ways to say a tensor, a number, a completion."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trimtab.data.pack import Output, Pack
from trimtab.objectives.terms import Counts, Loss
from trimtab.types import Completion, Group

GARBAGE = [math.nan, math.inf, -math.inf, 3e38]


def f64(*x: Any, grad: bool = False) -> Tensor:
    return torch.tensor(x[0] if len(x) == 1 else x, dtype=torch.float64, requires_grad=grad)


def near(got: Tensor | float, want: Any, tol: float = 1e-6) -> None:
    """Within ``tol``; the tables give six decimals, so finer is not to be had from them."""
    have = torch.as_tensor(got, dtype=torch.float64).detach()
    torch.testing.assert_close(have, torch.as_tensor(want, dtype=torch.float64), atol=tol, rtol=0.0)


def completion(length: int, *, mask: list[bool] | None = None, **fields: Any) -> Completion:
    on = np.array(mask if mask is not None else [True] * length)
    return Completion(ids=np.arange(3, 3 + length), mask=on, **fields)


def group(*completions: Completion) -> Group:
    return Group("g", np.array([1]), list(completions))


def total(loss: Loss, counts: Counts) -> Tensor:
    """The loss as the loop adds it up."""
    parts = [t.coef * t.sum / counts[t.per] for t in loss.terms.values()]
    return torch.stack(parts).sum()


def floats(columns: dict[str, list[float]]) -> dict[str, Any]:
    return {k: np.array(v, np.float32) for k, v in columns.items()}


class Scaled(nn.Module):
    """Log-probs given with the data times a parameter of 1, whose gradient is then the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, pack: Pack) -> Output:
        return Output(logp_C=self.scale * pack.tokens["given"])
