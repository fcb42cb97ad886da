"""Matrix products by the faster of the two libraries that torch brings for a CPU.

torch multiplies float32 by MKL, which leaves the 512-bit units of other makers' processors idle;
oneDNN, which torch has for other types, uses them. On AMD's it is twice as fast (LOG.md), with
float32 arithmetic throughout. Which one serves is told from the processor and the shapes, never from
a clock, so that a run and its resumption add up in one order.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

LEAST = 2**21
"""Multiplications from which oneDNN's longer way in pays."""
FEW = range(16, 60)
"""Rows before a turned matrix at which MKL loses half of its speed and more on Intel's processors."""
FEWER, WIDE = range(8, 16), 2**20
"""Fewer rows, at which it does so where a weight has this many numbers."""
PROGRAMS = 16
"""Programs that oneDNN keeps, one for each shape, with what they hold of the heap. Writing one takes
0.2 ms, and no two packs have the same shapes; the layers of one pack have."""


@lru_cache(1)
def amd_512() -> bool:
    """Whether the processor is one of AMD's with AVX-512."""
    return _has_512("AuthenticAMD")


@lru_cache(1)
def intel_512() -> bool:
    """Whether the processor is one of Intel's with AVX-512."""
    return _has_512("GenuineIntel")


def _has_512(maker: str) -> bool:
    told = _told()
    return maker in told and " avx512f " in told


@lru_cache(1)
def _full_width() -> bool:
    """Whether 512 bits are multiplied at once: family 26 on. The one before takes them by halves."""
    found = re.search(r"^cpu family\s*: (\d+)$", _told(), re.MULTILINE)
    return found is not None and int(found[1]) >= 26


@lru_cache(1)
def _told() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            return lines.read(8192)
    except OSError:
        return ""


@lru_cache(1)
def quick() -> bool:
    """Whether float32 goes by oneDNN: on AMD's processors with AVX-512, where this torch has it."""
    if not (amd_512() and torch.backends.mkldnn.is_available()):
        return False
    keep_programs(PROGRAMS)
    return _works()


def keep_programs(count: int) -> None:
    """How many programs oneDNN keeps, if its first was not written yet and nobody else has said."""
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(count))


def _works() -> bool:
    """The operation is torch's own business, so another version may lack it or take other arguments."""
    x = torch.arange(256, dtype=torch.float32, device="cpu").view(16, 16)
    try:
        return torch.equal(_by_onednn(x, x), x @ x.t())
    except (AttributeError, RuntimeError, TypeError):
        return False


def _by_onednn(x_MK: Tensor, w_NK: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(x_MK, w_NK, bias, "none", [], "")


class _Product(torch.autograd.Function):
    """x [M, K] times w [N, K] turned, plus bias [N]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _by_onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch's decorator renames ctx
        ctx: Any, *grad_outputs: Any
    ) -> Any:
        x, weight = ctx.saved_tensors
        wants_x, wants_w, wants_b = ctx.needs_input_grad
        g = grad_outputs[0].contiguous()
        return (
            _by_onednn(g, weight.t()) if wants_x else None,
            outer(g, x) if wants_w else None,
            g.sum(0) if wants_b else None,
        )


def serves(x: Tensor, weight: Tensor) -> bool:
    """Whether x [..., K] times weight [N, K] turned goes by oneDNN."""
    return _large(x.numel(), len(weight)) and _ours(x) and _ours(weight)


def _large(one: int, other: int) -> bool:
    return one * other >= LEAST


def _ours(x: Tensor) -> bool:
    # Wrapped tensors (sharded, traced, mapped) know torch's own operations alone.
    return (
        _float(x)
        and quick()
        and type(x) in (Tensor, nn.Parameter)
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., K] times weight [N, K] turned, plus bias [N]: [..., N], differentiable."""
    if not serves(x, weight):
        return linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        made: Tensor = _Product.apply(rows, weight, bias)  # pyright: ignore[reportAssignmentType]
    else:
        made = _by_onednn(rows, weight, bias)
    return made.view(*x.shape[:-1], -1)


def few(x_RK: Tensor, w_NK: Tensor, bias: Tensor | None = None) -> Tensor:
    """``product`` for the few rows of a decode step: [R, N], not differentiable.

    Where MKL serves on one of Intel's processors the weights come first and the rows are columns,
    so what is made lies in memory as [N, R]; what comes after keeps that, and needs no copy.
    """
    if not (_columns(len(x_RK), w_NK.numel()) and _float(x_RK) and _float(w_NK)):
        return product(x_RK, w_NK, bias)
    made = w_NK @ x_RK.t() if bias is None else torch.addmm(bias[:, None], w_NK, x_RK.t())
    return made.t()


def _columns(rows: int, numbers: int) -> bool:
    small = rows in FEW or (rows in FEWER and numbers >= WIDE)
    return small and intel_512() and not quick()


def _float(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu"


def outer(g_MN: Tensor, x_MK: Tensor) -> Tensor:
    """A weight's gradient [N, K]: g turned times x. Not differentiable."""
    # One side must be turned in memory for oneDNN, which takes longer than it gains by halves.
    large = _full_width() and _large(g_MN.numel(), x_MK.shape[1])
    if not (large and _ours(g_MN) and _ours(x_MK)):
        return g_MN.t() @ x_MK
    # The longer side is best the second: a third faster at 2,048 rows.
    if g_MN.shape[1] > x_MK.shape[1]:
        return _by_onednn(x_MK.t(), g_MN.t()).t().contiguous()
    return _by_onednn(g_MN.t(), x_MK.t())


def times(x_MK: Tensor, w_KN: Tensor) -> Tensor:
    """x times w as it stands [M, N]. Not differentiable."""
    return _by_onednn(x_MK, w_KN.t()) if serves(x_MK, w_KN.t()) else x_MK @ w_KN


class Linear(nn.Linear):
    """torch's, by ``product``."""

    def forward(self, input: Tensor) -> Tensor:
        return product(input, self.weight, self.bias)


def plain(layer: nn.Module) -> bool:
    """Whether a layer is one product and no more; adapters around it and hooks on it are more."""
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    return type(layer) in (nn.Linear, Linear) and not any(getattr(layer, name) for name in hooks)


def quick_linears(model: nn.Module) -> None:
    """Put ``Linear`` over a model's own linear layers where that is faster here.

    Weights, names and copies stay, and so does what the model computes.
    """
    if quick():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = Linear
