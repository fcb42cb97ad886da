"""Log-probs and entropies of chosen tokens, without logits that outlive their chunk.

Where all logits are few, their log-softmax is kept for the backward, which then spares a product.

The backward is written out. From p = softmax(z), l = log p, H the entropy and upstream gradients
g of the log-prob and e of the entropy:

    d/dz_j = g (1[j = y] - p_j) - e p_j (l_j + H)

so one product with the head's weight makes the logits again, and all else happens in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trimtab.kernels.matmul import outer, product, times

_KEPT = 2**23
"""Log-probs of the whole vocabulary that may wait for the backward: 32 MB in fp32."""
_LEAST = -1e30
"""Stands for a log-prob of -inf: its probability is 0, and 0 times it is 0, not NaN."""


@dataclass(frozen=True, slots=True)
class LogitHead:
    """Hidden states to logits: ``cap * tanh(times * (W h + b) / cap)``; without a cap no tanh."""

    layer: nn.Module
    """The output layer."""
    times: float = 1.0
    """Some architectures scale their logits."""
    cap: float = 0.0
    """Some bound them; 0 is off."""
    half: bool = False
    """Multiply in bfloat16, as the rest of the model does under mixed precision."""

    def __call__(self, states: Tensor) -> Tensor:
        """Logits [..., V]."""
        z = self.layer(states) * self.times if self.times != 1.0 else self.layer(states)
        return torch.tanh(z / self.cap) * self.cap if self.cap else z


def _logits(h_CD: Tensor, weight: Tensor, bias: Tensor | None, head: _Head) -> Tensor:
    """Logits over the temperature [C, V], fp32, fresh memory."""
    z = product(h_CD.to(weight.dtype), weight, bias).float()
    if head.cap:
        return z.mul_(head.times / head.cap).tanh_().mul_(head.cap / head.temperature)
    scale = head.times / head.temperature
    return z if scale == 1.0 else z.mul_(scale)


def _log_softmax(z_CV: Tensor) -> Tensor:
    return torch.log_softmax(z_CV, -1).clamp_(min=_LEAST)


@dataclass(frozen=True, slots=True)
class _Head:
    """What the function needs besides tensors."""

    times: float
    cap: float
    temperature: float
    kind: torch.dtype
    """In which the products are made."""
    chunk: int
    want: bool
    """Whether entropies are asked for."""


class _TokenLogps(torch.autograd.Function):
    """(logp_C, entropy_C) with the backward of the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any, h_CD: Tensor, y_C: Tensor, weight: Tensor, bias: Tensor | None, head: _Head
    ) -> tuple[Tensor, Tensor]:
        w = weight.to(head.kind)
        b = None if bias is None else bias.to(head.kind)
        logps: list[Tensor] = []
        entropies: list[Tensor] = []
        kept: Tensor | None = None
        keeps = not head.cap and len(y_C) <= head.chunk and len(y_C) * len(weight) <= _KEPT
        for h, y in zip(h_CD.split(head.chunk), y_C.split(head.chunk), strict=True):
            l = _log_softmax(_logits(h, w, b, head))
            logps.append(l.gather(-1, y[:, None])[:, 0])
            # From log p, not from z: log-sum-exp less sum(p z) cancels when all logits are large.
            if head.want:
                entropies.append(-torch.exp(l).mul_(l).sum(-1))
            if keeps and any(ctx.needs_input_grad):
                kept = l
        logp = torch.cat(logps)
        entropy = torch.cat(entropies) if head.want else torch.zeros_like(logp)
        ctx.save_for_backward(h_CD, y_C, weight, bias, entropy, kept)
        ctx.head = head
        ctx.set_materialize_grads(False)
        return logp, entropy

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch's decorator renames ctx
        ctx: Any, *grad_outputs: Any
    ) -> Any:
        g_C: Tensor | None = grad_outputs[0]
        e_C: Tensor | None = grad_outputs[1]
        h_CD, y_C, weight, bias, entropy_C, kept = ctx.saved_tensors
        head: _Head = ctx.head
        wants_h, _, wants_w, wants_b, _ = ctx.needs_input_grad
        w = weight.to(head.kind)
        b = None if bias is None else bias.to(head.kind)
        dh = torch.empty_like(h_CD) if wants_h else None
        dw = torch.zeros_like(weight) if wants_w else None
        db = torch.zeros_like(bias) if wants_b and bias is not None else None
        for at in range(0, len(y_C), head.chunk):
            part = slice(at, at + head.chunk)
            h, y = h_CD[part], y_C[part]
            slope = None
            if kept is None:
                z = _logits(h, w, b, head)
                if head.cap:
                    slope = 1.0 - (z * (head.temperature / head.cap)) ** 2
                l = _log_softmax(z)
            else:
                # A second backward through a kept graph must find it as it was.
                l = kept.clone() if e_C is not None else kept
            if e_C is None:
                assert g_C is not None
                dz = torch.exp(l).mul_(-g_C[part, None])
            else:
                p = torch.exp(l)
                factor = l.add_(entropy_C[part, None]).mul_(e_C[part, None])
                if g_C is not None:
                    factor.add_(g_C[part, None])
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
                dh[part] = times(dz, w).to(dh.dtype)
            if dw is not None:
                dw += outer(dz, h.to(head.kind)).to(dw.dtype)
            if db is not None:
                db += dz.sum(0).to(db.dtype)
        return dh, None, dw, db, None


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """Positions whose logits exist at one time: 64 MB of fp32 logits on CPU, 1 GB on CUDA."""
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
) -> tuple[Tensor, Tensor]:
    """Log-probs and, where asked for, entropies [C] in fp32; zeros stand for entropies that are not.

    ``head.layer`` must be ``plain``.
    """
    layer: Any = head.layer
    kind = torch.bfloat16 if head.half else layer.weight.dtype
    asked = _Head(head.times, head.cap, temperature, kind, chunk, entropy)
    made: Any = _TokenLogps.apply(hidden_CD, target_C, layer.weight, layer.bias, asked)
    return made
