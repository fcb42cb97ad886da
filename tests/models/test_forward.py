"""The packed forward against plain transformers, architecture by architecture."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.support import folders
from tests.support.models import KINDS, tiny
from tests.support.packed_forwards import alone, groups, packed, worst
from trimtab.data.pack import Pack, build
from trimtab.kernels.tree_attention import make_tree, tree_mask
from trimtab.models.export import save_model
from trimtab.models.forward import token_logps
from trimtab.models.heads import Scorer
from trimtab.models.load import LM, ModelSpec
from trimtab.models.lora import LoraSpec


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [10_000, 24])
def test_shared_packs_equal_separate_forwards(kind: str, budget: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lm = LM(tiny(kind), ModelSpec(path=kind))
    assert lm.exact, "this kind is meant to share prompts"
    prompts = groups()
    assert worst(packed(lm, prompts, budget), alone(lm.plain_attention(), prompts)) <= 1e-5


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2", "gpt2"])
def test_rows_equal_separate_forwards(kind: str) -> None:
    lm = LM(tiny(kind), ModelSpec(path=kind))
    lm.exact = False
    prompts = groups()
    assert worst(packed(lm, prompts), alone(lm.plain_attention(), prompts)) <= 1e-5


def test_an_architecture_that_cannot_share_says_so_and_stays_exact() -> None:
    config = AutoConfig.for_model(
        "mamba", vocab_size=64, hidden_size=32, state_size=4, num_hidden_layers=2, expand=2,
        conv_kernel=4, time_step_rank=2, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.warns(UserWarning, match="padded rows without sharing"):
        lm = LM(model, ModelSpec(path="mamba"))
    assert not lm.exact
    prompts = groups()
    assert worst(packed(lm, prompts), alone(model, prompts)) <= 1e-5


@pytest.mark.parametrize("tau", [0.5, 1.7])
def test_temperature(tau: float) -> None:
    lm = LM(tiny("llama"), ModelSpec(path="llama"))
    prompts = groups()
    assert worst(packed(lm, prompts, tau=tau), alone(lm.plain_attention(), prompts, tau)) <= 1e-5


def test_sharing_computes_each_prompt_once() -> None:
    prompts = groups()
    prompt, answers = (
        sum(len(g.prompt) for g in prompts),
        sum(len(c.ids) for g in prompts for c in g.completions),
    )
    system_twice, tools_once = 2 * 18, 17
    assert len(build(prompts).ids_N) == prompt + answers - system_twice - tools_once
    apart = sum(len(g.prompt) + len(c.ids) for g in prompts for c in g.completions)
    assert len(build(prompts, share=False).ids_N) > 0.9 * (apart - len(prompts) * 4)


def test_chunks_change_nothing() -> None:
    torch.manual_seed(0)
    states = torch.randn(23, 8, requires_grad=True)
    head = torch.nn.Linear(8, 31)
    target = torch.randint(0, 31, (23,))
    unchunked = (head(states) / 0.7).log_softmax(-1)
    want = unchunked.gather(1, target[:, None])[:, 0]
    entropy = -(unchunked.exp() * unchunked).sum(-1)
    weight = torch.randn(23)
    parameters = [states, head.weight]
    wanted = torch.autograd.grad((want * weight + entropy).sum(), parameters)
    for chunk in (1, 5, 23, 100):
        logp, h = token_logps(states, target, head, temperature=0.7, chunk=chunk)
        torch.testing.assert_close(logp, want, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(h, entropy, atol=1e-6, rtol=1e-5)
        got = torch.autograd.grad((logp * weight + h).sum(), parameters)
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def loss_gradients(lm: LM) -> list[torch.Tensor]:
    pack = build(groups())
    logp, entropy = lm.logps(lm.states(pack), pack)
    trained = [p for p in lm.model.parameters() if p.requires_grad]
    return list(torch.autograd.grad(logp.sum() + entropy.sum(), trained))


def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path) -> None:
    folders.model_folder(tmp_path / "m")
    plain = LM.load(ModelSpec(path=str(tmp_path / "m"), device="cpu"))
    saved = LM.load(ModelSpec(path=str(tmp_path / "m"), device="cpu", gradient_checkpointing=True))
    for a, b in zip(loss_gradients(plain), loss_gradients(saved), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_adapters_off_is_the_reference(tmp_path: Path) -> None:
    folders.model_folder(tmp_path / "m")
    base = LM.load(ModelSpec(path=str(tmp_path / "m"), device="cpu"), train=False)
    lm = LM.load(ModelSpec(path=str(tmp_path / "m"), device="cpu", lora=LoraSpec(r=4)))
    names = [n for n, p in lm.model.named_parameters() if p.requires_grad]
    assert names and all("lora_" in n for n in names)
    with torch.no_grad():
        for p in lm.model.parameters():
            if p.requires_grad:
                p.add_(0.3)
    prompts = groups(vocabulary=base.logit_width if base.logit_width < 64 else 64)
    want = packed(base, prompts)
    assert worst(packed(lm, prompts), want) > 1e-2
    with lm.adapters_off():
        assert worst(packed(lm, prompts), want) == 0.0


def test_bfloat16_stays_near(tmp_path: Path) -> None:
    folders.model_folder(tmp_path / "m")
    full = LM.load(ModelSpec(path=str(tmp_path / "m"), device="cpu"), train=False)
    half = LM.load(ModelSpec(path=str(tmp_path / "m"), device="cpu", dtype="bfloat16"), train=False)
    prompts = groups(vocabulary=30)
    assert half.exact
    assert 0 < worst(packed(half, prompts), packed(full, prompts)) < 0.1


def _mask(pack: Pack, window: int) -> torch.Tensor:
    """What may be seen, from the segments alone: the own prefix and what it continues, in the window."""
    n = len(pack.ids_N)
    start = np.cumsum([0, *[s.length for s in pack.segments]])
    seen = torch.zeros(n, n, dtype=torch.bool)
    for i, s in enumerate(pack.segments):
        for t in range(start[i], start[i + 1]):
            seen[t, start[i] : t + 1] = True
            above = s.parent
            while above >= 0:
                seen[t, start[above] : start[above + 1]] = True
                above = pack.segments[above].parent
    if window:
        apart = pack.positions_N[:, None] - pack.positions_N[None]
        seen &= apart < window
    return seen


@pytest.mark.parametrize("window", [0, 5])
def test_the_block_mask_of_the_gpu_path_is_the_tree(window: int) -> None:
    pack = build(groups())
    may = tree_mask(make_tree(pack), window)
    n = torch.arange(len(pack.ids_N))
    got = may(torch.tensor(0), torch.tensor(0), n[:, None], n[None])
    assert torch.equal(got, _mask(pack, window))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_a_saved_scorer_is_an_ordinary_classifier(kind: str, tmp_path: Path) -> None:
    tiny(kind).save_pretrained(tmp_path / "lm")
    scorer = Scorer.load(ModelSpec(path=str(tmp_path / "lm"), device="cpu"), pad_id=0)
    prompts = groups()
    pack = build(prompts, share=scorer.exact)
    with torch.no_grad():
        ours = scorer.scores(pack)

    class NoTokenizer:
        def save_pretrained(self, folder: Path) -> None:
            """Nothing to save."""

    save_model(scorer.model, tmp_path / "rm", NoTokenizer(), scorer.plain)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").eval()
    rows = [np.concatenate([g.prompt, c.ids]) for g in pack.groups for c in g.completions]
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.from_numpy(row)
    with torch.no_grad():
        theirs = plain(input_ids=ids, attention_mask=(ids != 0).long()).logits[:, 0]
    assert float(ours.std()) > 1e-3
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_values_are_those_of_each_state(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path / "lm")
    scorer = Scorer.load(ModelSpec(path=str(tmp_path / "lm"), device="cpu"), pad_id=0)
    prompts = groups()
    pack = build(prompts, share=scorer.exact)
    with torch.no_grad():
        values = scorer.values(pack)
    plain: Any = scorer.model
    plain.set_attn_implementation("sdpa")
    flat = [(g, c) for g in pack.groups for c in g.completions]
    for b, (g, c) in enumerate(flat):
        ids = torch.from_numpy(np.concatenate([g.prompt, c.ids]))[None]
        with torch.no_grad():
            states = plain.model(input_ids=ids).last_hidden_state[0]
            want = plain.score(states)[len(g.prompt) - 1 : -1, 0]
        torch.testing.assert_close(values[pack.owner_C == b], want, atol=1e-5, rtol=1e-5)
