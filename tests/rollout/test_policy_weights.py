"""The stream of weights equals an export, and names a tied head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support import folders
from tests.support.models import tiny
from trimtab.models.export import save_model
from trimtab.models.load import LM
from trimtab.models.lora import LoraSpec
from trimtab.models.model_spec import ModelSpec
from trimtab.rollout.policy_weights import PolicyWeights


def policy(folder: Path, tied: bool, lora: LoraSpec | None) -> LM:
    tiny("llama", tie_word_embeddings=tied).save_pretrained(folder)
    folders.tokenizer().save_pretrained(folder)
    lm = LM.load(ModelSpec(path=str(folder), lora=lora, device="cpu"))
    torch.manual_seed(1)
    with torch.no_grad():
        for p in lm.model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p), alpha=0.1)
    return lm


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "lora",
    [
        None,
        LoraSpec(r=2),
        LoraSpec(r=2, targets=("q_proj", "lm_head")),
        LoraSpec(r=2, targets=("q_proj", "embed_tokens")),
        LoraSpec(r=2, targets=("q_proj",), modules_to_save=("embed_tokens",)),
        LoraSpec(r=2, targets=("v_proj",), modules_to_save=("lm_head",)),
    ],
)
def test_stream_equals_export(tmp_path: Path, tied: bool, lora: LoraSpec | None) -> None:
    lm = policy(tmp_path / "start", tied, lora)
    tokenizer = folders.tokenizer()
    stream = dict(PolicyWeights(lm, tokenizer).tensors())
    stream = {name: tensor.clone() for name, tensor in stream.items()}
    save_model(lm.model, tmp_path / "model", tokenizer)
    saved = load_file(tmp_path / "model" / "model.safetensors")
    # Another program reads a tied head from the embeddings.
    saved.setdefault("lm_head.weight", saved["model.embed_tokens.weight"])
    assert stream.keys() == saved.keys()
    for name, tensor in saved.items():
        assert torch.equal(stream[name], tensor), name


def test_logps_are_those_of_the_model(tmp_path: Path) -> None:
    lm = policy(tmp_path / "start", True, LoraSpec(r=2))
    rng = np.random.default_rng(0)
    sequences = [(rng.integers(6, 20, 4), rng.integers(6, 20, 3 + i)) for i in range(3)]
    got = PolicyWeights(lm, folders.tokenizer()).logps(sequences, 0.7)
    model: Any = lm.plain_attention()
    for (prompt, ids), logp in zip(sequences, got, strict=True):
        with torch.no_grad():
            joined = torch.from_numpy(np.concatenate([prompt, ids]))[None]
            logits = model(input_ids=joined).logits[0, len(prompt) - 1 : -1] / 0.7
            expected = logits.log_softmax(-1).gather(1, torch.from_numpy(ids)[:, None])[:, 0]
        np.testing.assert_allclose(logp, expected.numpy(), atol=2e-5)
