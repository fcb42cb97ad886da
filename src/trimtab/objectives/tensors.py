"""Small tensor operations: masked statistics and ragged batches."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trimtab.types import Bools, Floats


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of ``x`` where ``mask``; selection, not multiplication, so NaN under the mask is harmless."""
    return torch.where(mask, x, torch.zeros_like(x)).sum()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``x`` where ``mask``; 0 when nothing is selected."""
    return masked_sum(x, mask) / mask.sum().clamp(min=1)


def whiten(x: Tensor, mask: Tensor, *, keep_mean: bool = False) -> Tensor:
    """(x - mean) / sqrt(var + 1e-8) over selected entries, population variance; 0 elsewhere.

    With ``keep_mean`` the mean is added back (reward whitening).
    """
    mean = masked_mean(x, mask)
    centred = torch.where(mask, x - mean, torch.zeros_like(x))
    scaled = centred / torch.sqrt(masked_mean(centred**2, mask) + 1e-8)
    return torch.where(mask, scaled + mean, scaled) if keep_mean else scaled


def segment_sum(x_C: Tensor, owner_C: Tensor, count: int) -> Tensor:
    """Sums of ``x_C`` by owner: [count]."""
    return torch.zeros(count, dtype=x_C.dtype, device=x_C.device).index_add(0, owner_C, x_C)


def suffix_sum(x_C: Tensor, owner_C: Tensor) -> Tensor:
    """Sums [C] of ``x_C`` from each place to the last of the same owner; ``owner_C`` ascends.

    >>> suffix_sum(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 0, 1]))
    tensor([3., 2., 3.])
    """
    if not len(x_C):
        return x_C
    ends = torch.searchsorted(owner_C, owner_C, right=True) - 1
    # In double precision: the difference of two sums over a whole pack.
    sums = x_C.double().cumsum(0)
    return (sums[ends] - sums + x_C.double()).to(x_C.dtype)


def pad_rows(rows: Sequence[Floats | Bools], *, fill: float = 0.0) -> Tensor:
    """Ragged numpy rows as one right-padded tensor [B, T]; booleans stay booleans."""
    width = max((len(row) for row in rows), default=0)
    boolean = len(rows) > 0 and rows[0].dtype == np.bool_
    out = np.full(
        (len(rows), width), bool(fill) if boolean else fill, dtype=bool if boolean else np.float32
    )
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out)


def unpad_rows(x: Tensor, lengths: Sequence[int]) -> list[Floats]:
    """The inverse of ``pad_rows`` for float tensors."""
    array = x.detach().to("cpu", torch.float32).numpy()
    return [array[i, :n].copy() for i, n in enumerate(lengths)]
