"""CPU matmuls with the faster of torch's two libraries, MKL and oneDNN.

torch multiplies float32 with MKL, which does not use the 512-bit units of AMD processors. oneDNN,
which torch ships for other dtypes, does: it is twice as fast there (LOG.md), in float32 throughout.
The choice depends on the processor and the shapes only, never on a measurement, so that a run and
its resumption sum in the same order.
"""

import os
import re
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

ONEDNN_MIN_SIZE = 2**21
"""Multiplications from which oneDNN's higher call overhead pays."""
COLUMN_ROWS = range(16, 60)
"""Row counts at which x @ w.T loses half of MKL's speed or more on Intel processors."""
WIDE_COLUMN_ROWS, WIDE_NUMEL = range(8, 16), 2**20
"""Row counts at which that happens only for weights of at least this many elements."""
AVX2_ROWS, AVX2_WIDE_ROWS = range(8, 129), range(2, 257)
"""The same two ranges for AMD processors without AVX-512."""
PRIMITIVE_CACHE_SIZE = 16
"""Primitives that oneDNN caches, one per shape, with their buffers. Creating one takes 0.2 ms; the
layers of one pack share shapes, but no two packs do."""


@lru_cache(1)
def is_amd_avx512() -> bool:
    """Whether the processor is an AMD with AVX-512."""
    return _has_avx512("AuthenticAMD")


@lru_cache(1)
def is_intel_avx512() -> bool:
    """Whether the processor is an Intel with AVX-512."""
    return _has_avx512("GenuineIntel")


@lru_cache(1)
def is_amd_avx2() -> bool:
    """Whether the processor is an AMD without AVX-512."""
    return "AuthenticAMD" in _cpuinfo() and not is_amd_avx512()


def _has_avx512(maker: str) -> bool:
    cpuinfo = _cpuinfo()
    return maker in cpuinfo and " avx512f " in cpuinfo


@lru_cache(1)
def _has_full_width_avx512() -> bool:
    """Whether AVX-512 is computed at full width (AMD family 26 on; family 25 uses two halves)."""
    family = re.search(r"^cpu family\s*: (\d+)$", _cpuinfo(), re.MULTILINE)
    return family is not None and int(family[1]) >= 26


@lru_cache(1)
def _cpuinfo() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            return lines.read(8192)
    except OSError:
        return ""


@lru_cache(1)
def uses_onednn() -> bool:
    """Whether float32 matmuls use oneDNN: on AMD processors with AVX-512, if this torch has it."""
    if not (is_amd_avx512() and torch.backends.mkldnn.is_available()):
        return False
    limit_primitive_cache(PRIMITIVE_CACHE_SIZE)
    return _onednn_works()


def limit_primitive_cache(count: int) -> None:
    """Limit oneDNN's primitive cache; no effect after its first use or if the user has set it."""
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(count))


def _onednn_works() -> bool:
    """Try the operation once: it is private to torch, so another version may lack or change it."""
    x = torch.arange(256, dtype=torch.float32, device="cpu").view(16, 16)
    try:
        return torch.equal(_onednn_linear(x, x), x @ x.t())
    except (AttributeError, RuntimeError, TypeError):
        return False


def _onednn_linear(x_MK: Tensor, w_NK: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(x_MK, w_NK, bias, "none", [], "")


class _OneDNNLinear(torch.autograd.Function):
    """x [M, K] @ w [N, K].T + bias [N] with oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn_linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch's decorator renames ctx
        ctx: Any, *grad_outputs: Any
    ) -> Any:
        x, weight = ctx.saved_tensors
        wants_x, wants_w, wants_b = ctx.needs_input_grad
        g = grad_outputs[0].contiguous()
        return (
            _onednn_linear(g, weight.t()) if wants_x else None,
            weight_gradient(g, x) if wants_w else None,
            g.sum(0) if wants_b else None,
        )


def runs_on_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether x [..., K] @ weight [N, K].T runs on oneDNN."""
    return _is_large(x.numel(), len(weight)) and _is_eligible(x) and _is_eligible(weight)


def _is_large(one: int, other: int) -> bool:
    return one * other >= ONEDNN_MIN_SIZE


def _is_eligible(x: Tensor) -> bool:
    # Tensor subclasses (sharded, traced, vmapped) support public operations only.
    return (
        _is_cpu_float32(x)
        and uses_onednn()
        and type(x) in (Tensor, nn.Parameter)
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
    )


def fast_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., K] @ weight [N, K].T + bias [N] -> [..., N], differentiable."""
    if not runs_on_onednn(x, weight):
        return linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        out: Tensor = _OneDNNLinear.apply(rows, weight, bias)  # pyright: ignore[reportAssignmentType]
    else:
        out = _onednn_linear(rows, weight, bias)
    return out.view(*x.shape[:-1], -1)


def decode_linear(x_RK: Tensor, w_NK: Tensor, bias: Tensor | None = None) -> Tensor:
    """``fast_linear`` for the few rows of a decode step -> [R, N], not differentiable.

    With MKL, at the row counts where that is faster, it computes weight @ x.T, so the result is
    stored as [N, R] and returned as a transposed view, which later operations use without a copy.
    """
    if not (
        _rows_as_columns(len(x_RK), w_NK.numel())
        and _is_cpu_float32(x_RK)
        and _is_cpu_float32(w_NK)
    ):
        return fast_linear(x_RK, w_NK, bias)
    out_NR = w_NK @ x_RK.t() if bias is None else torch.addmm(bias[:, None], w_NK, x_RK.t())
    return out_NR.t()


def _rows_as_columns(rows: int, numbers: int) -> bool:
    if uses_onednn():
        return False
    wide = numbers >= WIDE_NUMEL
    if is_amd_avx2():
        return rows in (AVX2_WIDE_ROWS if wide else AVX2_ROWS)
    small = rows in COLUMN_ROWS or (rows in WIDE_COLUMN_ROWS and wide)
    return small and is_intel_avx512()


def _is_cpu_float32(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu"


def weight_gradient(g_MN: Tensor, x_MK: Tensor) -> Tensor:
    """Gradient of a weight [N, K] = g.T @ x. Not differentiable."""
    # oneDNN must transpose one side in memory, which pays at full width only.
    large = _has_full_width_avx512() and _is_large(g_MN.numel(), x_MK.shape[1])
    if not (large and _is_eligible(g_MN) and _is_eligible(x_MK)):
        return g_MN.t() @ x_MK
    # The longer side is better second: a third faster at 2,048 rows.
    if g_MN.shape[1] > x_MK.shape[1]:
        return _onednn_linear(x_MK.t(), g_MN.t()).t().contiguous()
    return _onednn_linear(g_MN.t(), x_MK.t())


def fast_matmul(x_MK: Tensor, w_KN: Tensor) -> Tensor:
    """x @ w -> [M, N]. Not differentiable."""
    return _onednn_linear(x_MK, w_KN.t()) if runs_on_onednn(x_MK, w_KN.t()) else x_MK @ w_KN


class FastLinear(nn.Linear):
    """``nn.Linear`` computed by ``fast_linear``."""

    def forward(self, input: Tensor) -> Tensor:
        return fast_linear(input, self.weight, self.bias)


def is_plain_linear(layer: nn.Module) -> bool:
    """Whether a layer is a linear layer without adapters or hooks."""
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    return type(layer) in (nn.Linear, FastLinear) and not any(
        getattr(layer, name) for name in hooks
    )


def use_fast_linears(model: nn.Module) -> None:
    """Turn a model's ``nn.Linear`` layers into ``FastLinear`` where that is faster.

    Weights, names, copies and results do not change.
    """
    if uses_onednn():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = FastLinear
