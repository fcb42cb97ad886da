"""Log-probs, entropies and log-sum-exps at target tokens, in chunks so that full logits never exist.

If all logits of a call are small, their log-softmax is stored for the backward, which saves a
matmul. Otherwise the backward recomputes the logits of each chunk with one matmul. With
p = softmax(z), l = log p, entropy H, and upstream gradients g of the log-prob, e of the entropy and n of
the log-sum-exp:

    d/dz_j = g (1[j = y] - p_j) - e p_j (l_j + H) + n p_j
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trimtab.kernels.matmul import fast_linear, fast_matmul, weight_gradient

_CACHED_LOGPS = 2**23
"""Largest number of log-probs stored for the backward: 32 MB in fp32."""
_MIN_LOGP = -1e30
"""Replaces a log-prob of -inf: 0 times it is 0, not NaN."""


@dataclass(frozen=True, slots=True)
class LogitHead:
    """Hidden states to logits: ``cap * tanh(times * (W h + b) / cap)``; without a cap no tanh."""

    layer: nn.Module
    """The output layer."""
    times: float = 1.0
    """Scale of the logits (some architectures)."""
    cap: float = 0.0
    """Soft cap of the logits (some architectures); 0 is off."""
    half: bool = False
    """Compute the matmul in bfloat16, as the rest of the model under mixed precision."""

    def __call__(self, states: Tensor) -> Tensor:
        """Logits [..., V]."""
        z = self.layer(states) * self.times if self.times != 1.0 else self.layer(states)
        return torch.tanh(z / self.cap) * self.cap if self.cap else z


def _logits(h_CD: Tensor, weight: Tensor, bias: Tensor | None, head: _HeadOptions) -> Tensor:
    """Logits divided by the temperature [C, V], fp32, in new memory."""
    z = fast_linear(h_CD.to(weight.dtype), weight, bias).float()
    if head.cap:
        return z.mul_(head.times / head.cap).tanh_().mul_(head.cap / head.temperature)
    scale = head.times / head.temperature
    return z if scale == 1.0 else z.mul_(scale)


def _log_softmax(z_CV: Tensor) -> Tensor:
    return torch.log_softmax(z_CV, -1).clamp_(min=_MIN_LOGP)


@dataclass(frozen=True, slots=True)
class _HeadOptions:
    """Non-tensor arguments of ``_TokenLogps``."""

    times: float
    cap: float
    temperature: float
    kind: torch.dtype
    """Dtype of the matmuls."""
    chunk: int
    want: bool
    """Whether to compute entropies."""
    norm: bool
    """Whether to compute log-sum-exps."""


class _TokenLogps(torch.autograd.Function):
    """(logp_C, entropy_C, norm_C), with the backward given in the module docstring."""

    @staticmethod
    def forward(
        ctx: Any, h_CD: Tensor, y_C: Tensor, weight: Tensor, bias: Tensor | None, head: _HeadOptions
    ) -> tuple[Tensor, Tensor, Tensor]:
        w = weight.to(head.kind)
        b = None if bias is None else bias.to(head.kind)
        logps: list[Tensor] = []
        entropies: list[Tensor] = []
        norms: list[Tensor] = []
        cached: Tensor | None = None
        use_cache = (
            not head.cap and len(y_C) <= head.chunk and len(y_C) * len(weight) <= _CACHED_LOGPS
        )
        for h, y in zip(h_CD.split(head.chunk), y_C.split(head.chunk), strict=True):
            z = _logits(h, w, b, head)
            if head.norm:
                norms.append(torch.logsumexp(z, -1))
            l = _log_softmax(z)
            logps.append(l.gather(-1, y[:, None])[:, 0])
            # From log p, not from z: log-sum-exp less sum(p z) cancels when all logits are large.
            if head.want:
                entropies.append(-torch.exp(l).mul_(l).sum(-1))
            if use_cache and any(ctx.needs_input_grad):
                cached = l
        logp = torch.cat(logps)
        entropy = torch.cat(entropies) if head.want else torch.zeros_like(logp)
        norm = torch.cat(norms) if head.norm else torch.zeros_like(logp)
        ctx.save_for_backward(h_CD, y_C, weight, bias, entropy, cached)
        ctx.head = head
        ctx.set_materialize_grads(False)
        return logp, entropy, norm

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch's decorator renames ctx
        ctx: Any, *grad_outputs: Any
    ) -> Any:
        g_C: Tensor | None = grad_outputs[0]
        e_C: Tensor | None = grad_outputs[1]
        n_C: Tensor | None = grad_outputs[2] if ctx.head.norm else None
        h_CD, y_C, weight, bias, entropy_C, cached = ctx.saved_tensors
        head: _HeadOptions = ctx.head
        wants_h, _, wants_w, wants_b, _ = ctx.needs_input_grad
        w = weight.to(head.kind)
        b = None if bias is None else bias.to(head.kind)
        # What every token's probability is multiplied by, negative.
        share_C = g_C if n_C is None else (-n_C if g_C is None else g_C - n_C)
        dh = torch.empty_like(h_CD) if wants_h else None
        dw = torch.zeros_like(weight) if wants_w else None
        db = torch.zeros_like(bias) if wants_b and bias is not None else None
        for at in range(0, len(y_C), head.chunk):
            part = slice(at, at + head.chunk)
            h, y = h_CD[part], y_C[part]
            slope = None
            if cached is None:
                z = _logits(h, w, b, head)
                if head.cap:
                    slope = 1.0 - (z * (head.temperature / head.cap)) ** 2
                l = _log_softmax(z)
            else:
                # A second backward through a retained graph needs the stored values.
                l = cached.clone() if e_C is not None else cached
            if e_C is None:
                assert share_C is not None
                dz = torch.exp(l).mul_(-share_C[part, None])
            else:
                p = torch.exp(l)
                factor = l.add_(entropy_C[part, None]).mul_(e_C[part, None])
                if share_C is not None:
                    factor.add_(share_C[part, None])
                dz = p.mul_(factor).neg_()
            if g_C is not None:
                dz[torch.arange(len(y), device=y.device), y] += g_C[part]
            if slope is not None:
                dz.mul_(slope)
            scale = head.times / head.temperature
            if scale != 1.0:
                dz.mul_(scale)
            dz = dz.to(head.kind)
            if dh is not None:
                dh[part] = fast_matmul(dz, w).to(dh.dtype)
            if dw is not None:
                dw += weight_gradient(dz, h.to(head.kind)).to(dw.dtype)
            if db is not None:
                db += dz.sum(0).to(db.dtype)
        return dh, None, dw, db, None


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """Positions per chunk: 64 MB of fp32 logits on CPU, 1 GB on CUDA."""
    floats = 2**28 if device.type == "cuda" else 2**24
    return max(64, min(8192, floats // max(1, vocabulary)))


def fused_logps(
    hidden_CD: Tensor,
    target_C: Tensor,
    head: LogitHead,
    *,
    temperature: float,
    chunk: int,
    entropy: bool,
    norm: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs, entropies and log-sum-exps [C] in fp32; the last two are zeros unless ``entropy``, ``norm``.

    ``head.layer`` must satisfy ``is_plain_linear``.
    """
    layer: Any = head.layer
    kind = torch.bfloat16 if head.half else layer.weight.dtype
    options = _HeadOptions(head.times, head.cap, temperature, kind, chunk, entropy, norm)
    out: Any = _TokenLogps.apply(hidden_CD, target_C, layer.weight, layer.bias, options)
    return out
