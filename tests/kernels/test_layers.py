"""The last layer computed where it is read, beside the whole: the same values, the same gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import TaskType
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tests.support.models import tiny
from tests.support.packed_forwards import groups
from trimtab.data.pack import Pack, build
from trimtab.kernels.layers import RMSNorm, Rotate, rotate
from trimtab.models import forward
from trimtab.models.load import (
    LM,
    ModelSpec,
    backbone_of,
    enable_gradient_checkpointing,
)
from trimtab.models.lora import LoraSpec, add_lora

TOLD = {"llama", "mistral", "qwen2", "qwen3"}


def loaded(kind: str, dressed: str = "") -> LM:
    """A model in float64, plain or as ``dressed`` says."""
    model: torch.nn.Module = tiny(kind).double()
    if dressed == "lora":
        model = add_lora(model, LoraSpec(r=2), TaskType.CAUSAL_LM, 0, None).double()
        for name, p in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.1)
    if dressed == "checkpoint":
        enable_gradient_checkpointing(model)
        model.train()
    return LM(model, ModelSpec(path=kind))


def told(lm: LM, read: Callable[[Pack], Tensor]) -> tuple[Tensor, Tensor]:
    """States at the rows that are read, and the gradients of all weights."""
    pack = build(groups())
    at = read(pack)
    states = lm.states_at(pack, at)
    lm.model.zero_grad()
    torch.manual_seed(1)
    (states * torch.randn_like(states)).sum().backward()
    grads = [p.grad.flatten() for p in lm.model.parameters() if p.grad is not None]
    return states.detach(), torch.cat(grads)


@pytest.mark.slow
@pytest.mark.parametrize("dressed", ["", "lora", "checkpoint"])
@pytest.mark.parametrize("kind", sorted(TOLD))
def test_rows_are_those_of_the_whole(
    kind: str, dressed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = loaded(kind, dressed)
    assert lm.exact and forward.patch_layers(backbone_of(lm.model))
    for read in (lambda p: p.source_C, lambda p: p.last_B, lambda p: p.last_B.flip(0)[:1]):
        got = told(lm, read)
        with monkeypatch.context() as m:
            m.setattr(forward, "patch_layers", lambda _: False)
            want = told(lm, read)
        for a, b in zip(got, want, strict=True):  # norms are taken in fp32 whatever the weights are
            torch.testing.assert_close(a, b, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(9, 16), (2, 7, 16)])
def test_norm_backward(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    w = torch.randn(shape[-1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: RMSNorm.apply(x, w, 1e-5), (x, w))
    got: Any = RMSNorm.apply(x, w, 1e-5)
    torch.testing.assert_close(got, torch.nn.functional.rms_norm(x, shape[-1:], w, 1e-5))


def test_turns_as_transformers_does() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 3, 8, dtype=torch.float64, requires_grad=True)
    angle = torch.randn(5, 4, dtype=torch.float64).repeat(1, 2)
    cos, sin = angle.cos(), angle.sin()
    heads = x.transpose(0, 1)[None]
    want, _ = apply_rotary_pos_emb(heads, heads, cos[None], sin[None])
    torch.testing.assert_close(rotate(x.detach(), cos, sin), want[0].transpose(0, 1).detach())
    assert torch.autograd.gradcheck(lambda x: Rotate.apply(x, cos, sin), (x,))


def test_unread_rows_are_not_multiplied() -> None:
    lm = loaded("llama")
    pack = build(groups())

    def spent(rows: Tensor) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            lm.states_at(pack, rows)
        return counter.get_total_flops()

    c: Any = lm.model.config
    after = 2 * c.hidden_size * (c.hidden_size + 3 * c.intermediate_size)
    every = torch.arange(pack.size)
    assert spent(every) - spent(pack.last_B) == after * (pack.size - len(pack.last_B))


def test_a_copy_reads_its_own_weights() -> None:
    lm = loaded("llama")
    pack = build(groups())
    before = lm.states(pack).detach()
    other = lm.frozen_copy()
    with torch.no_grad():
        for p in lm.model.parameters():
            p.add_(0.1)
    torch.testing.assert_close(other.states(pack), before)
    assert not torch.allclose(lm.states(pack), before)
    # Without ``read`` the layer is as transformers made it.
    plain = copy.deepcopy(other.plain_attention())
    ids = torch.arange(5)[None]
    assert plain(input_ids=ids).logits.shape[1] == 5


def test_other_families_are_read_whole() -> None:
    for kind in ("gpt2", "gemma2"):
        lm = LM(tiny(kind), ModelSpec(path=kind))
        assert not forward.patch_layers(backbone_of(lm.model))
        pack = build(groups(), share=lm.exact)
        assert lm.states(pack).shape == (len(pack.source_C), lm.logit_width)
