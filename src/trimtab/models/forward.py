"""The packed forward: from a pack to per-token log-probs, values and scores.

Full logits never exist: log-probs and entropies are computed at trained completion positions only,
in chunks whose logits are recomputed in the backward pass. Under mixed precision the trunk computes
in bfloat16 with fp32 weights.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from trimtab.data.pack import Pack
from trimtab.kernels.layers import patch_layers
from trimtab.kernels.logprobs import LogitHead, chunk_rows, fused_logps
from trimtab.kernels.matmul import is_plain_linear, use_fast_linears
from trimtab.kernels.tree_attention import NAME, make_tree, register

Head = Callable[[Tensor], Tensor]


def set_attention(model: nn.Module, name: str) -> None:
    """Set the attention implementation of a transformers model."""
    register()
    inner: Any = model
    if inner.config._attn_implementation != name:
        inner.set_attn_implementation(name)


def mixed_precision(device: torch.device, on: bool) -> AbstractContextManager[Any]:
    """Autocast to bfloat16 if ``on``; weights do not change."""
    return torch.autocast(device.type, torch.bfloat16) if on else nullcontext()


def hidden_states(
    backbone: nn.Module,
    pack: Pack,
    read_K: Tensor,
    *,
    exact: bool,
    plain: str = "sdpa",
    mixed: bool = False,
) -> Tensor:
    """Last hidden states [K, D] of a pack at the indices ``read_K``.

    Args:
        backbone: A transformers decoder without its head.
        pack: Built with ``share=exact``.
        read_K: Indices into N; repeats are allowed.
        exact: Whether tree attention supports this architecture; otherwise every sequence is a
            right-padded row under the ``plain`` attention, which is exact for any causal model.
        mixed: Compute matmuls in bfloat16.
    """
    with mixed_precision(pack.ids_N.device, mixed):
        states = _hidden(backbone, pack, read_K, exact, plain)
    return states.float() if mixed else states


def _hidden(backbone: nn.Module, pack: Pack, read_K: Tensor, exact: bool, plain: str) -> Tensor:
    use_fast_linears(backbone)
    if exact:
        set_attention(backbone, NAME)
        cut = patch_layers(backbone)
        out = backbone(
            input_ids=pack.ids_N[None],
            position_ids=pack.positions_N[None],
            attention_mask=None,
            use_cache=False,
            tree=make_tree(pack),
            **({"read": read_K} if cut else {}),
        )
        states = out.last_hidden_state[0]
        return states if cut else states.index_select(0, read_K)
    set_attention(backbone, plain)
    assert all(s.parent < 0 for s in pack.segments), "rows need a pack built without sharing"
    lengths = [s.length for s in pack.segments]
    rows = pad_sequence(list(pack.ids_N.split(lengths)), batch_first=True)
    at = torch.arange(rows.shape[1], device=rows.device)
    real = at[None] < torch.tensor(lengths, device=rows.device)[:, None]
    out = backbone(input_ids=rows, attention_mask=real.long(), use_cache=False)
    return out.last_hidden_state[real].index_select(0, read_K)


def _from_logits(
    hidden_CD: Tensor, target_C: Tensor, head: Head, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs, entropies and log-sum-exps [C]."""
    logits = head(hidden_CD).float() / temperature
    norm = torch.logsumexp(logits, -1)
    logp = logits.gather(-1, target_C[:, None])[:, 0] - norm
    # From log p, not from z: norm - sum(p z) cancels if all logits are large.
    log_p = logits - norm[:, None]
    p = torch.exp(log_p)
    # Masked before multiplying, so that a logit of -inf gives 0 and a gradient of 0, not NaN.
    entropy = -(p * torch.where(p > 0, log_p, torch.zeros_like(p))).sum(-1)
    return logp, entropy, norm


def token_logps(
    hidden_CD: Tensor,
    target_C: Tensor,
    head: Head,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
    entropy: bool = True,
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies, both [C] in fp32, nats (ALGORITHMS: z_t[y]/tau - logsumexp(z/tau)).

    Args:
        hidden_CD: Hidden states at the positions before ``target_C``.
        target_C: Token ids.
        head: Maps hidden states to logits; a plain linear layer uses the fused kernel.
        temperature: Divides the logits; > 0.
        chunk: Positions per chunk; by default chosen so that the logits stay small.
        entropy: False returns zeros in place of entropies.
    """
    logp, entropy_C, _ = logps_and_norms(
        hidden_CD, target_C, head, temperature=temperature, chunk=chunk, entropy=entropy, norm=False
    )
    return logp, entropy_C


def logps_and_norms(
    hidden_CD: Tensor,
    target_C: Tensor,
    head: Head,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
    entropy: bool = True,
    norm: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``token_logps``, and the log-sum-exps of the logits, logsumexp(z/tau): [C] each in fp32, nats.

    A log-prob plus the log-sum-exp is the token's logit, z[y]/tau.

    Args:
        norm: False returns zeros in place of log-sum-exps.
    """
    if len(target_C) == 0:
        empty = hidden_CD.sum() * 0.0 + hidden_CD.new_zeros(0, dtype=torch.float32)
        return empty, empty, empty
    if isinstance(head, nn.Linear):
        head = LogitHead(head)
    if isinstance(head, LogitHead) and is_plain_linear(head.layer):
        rows = chunk or chunk_rows(int(cast(Any, head.layer).out_features), hidden_CD.device)
        return fused_logps(
            hidden_CD,
            target_C,
            head,
            temperature=temperature,
            chunk=rows,
            entropy=entropy,
            norm=norm,
        )
    logps: list[Tensor] = []
    entropies: list[Tensor] = []
    norms: list[Tensor] = []
    recompute = torch.is_grad_enabled() and hidden_CD.requires_grad
    rows = chunk or 2048
    for h, y in zip(hidden_CD.split(rows), target_C.split(rows), strict=True):
        if recompute:
            part: Any = checkpoint(_from_logits, h, y, head, temperature, use_reentrant=False)
        else:
            part = _from_logits(h, y, head, temperature)
        logps.append(part[0])
        entropies.append(part[1])
        norms.append(part[2])
    return torch.cat(logps), torch.cat(entropies), torch.cat(norms)
