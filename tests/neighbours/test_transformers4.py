"""Exported folders under a real transformers 4, which RewardBench and other programs pin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.support import folders
from tests.support.models import tiny
from tests.support.neighbours import program
from trimtab.models.export import save_model
from trimtab.models.heads import Scorer
from trimtab.models.load import LM
from trimtab.models.lora import LoraSpec
from trimtab.models.model_spec import ModelSpec

IDS = [1, 4, 9, 20, 7, 11, 8, 25, 13, 2, 6, 19]
MESSAGES = [{"role": "user", "content": "who is there ?"}, {"role": "assistant", "content": "no"}]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
THETA = {"rope_parameters": {"rope_type": "default", "rope_theta": 30.0}}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", THETA),
    "tied": ("llama", {**THETA, "tie_word_embeddings": True}),
    "llama3": ("llama", {"rope_parameters": LLAMA3}),
    "linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 50.0}},
    ),
    "qwen2": ("qwen2", THETA),
    "qwen3": ("qwen3", THETA),
    "mistral": ("mistral", THETA),
    "gemma2": ("gemma2", THETA),
    "gemma3": (
        "gemma3_text",
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 90.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
            },
            "num_hidden_layers": 6,
            "layer_types": [*["sliding_attention"] * 5, "full_attention"],
        },
    ),
    "gpt2": ("gpt2", {}),
}


def exports(root: Path) -> dict[str, dict[str, Any]]:
    """Folders that trimtab exported from tiny models: policies, a reward model, an adapter."""
    jobs: dict[str, dict[str, Any]] = {}
    for name, (kind, over) in KINDS.items():
        start = root / "start" / name
        tiny(kind, **over).save_pretrained(start)
        folders.tokenizer().save_pretrained(start)
        lm = LM.load(ModelSpec(path=str(start), device="cpu"), train=False)
        save_model(lm.model, root / name, folders.tokenizer(), lm.plain, (2,))
        jobs[name] = {"folder": str(root / name)}
    scorer = Scorer.load(ModelSpec(path=str(root / "start" / "llama3"), device="cpu"), pad_id=0)
    save_model(scorer.model, root / "reward", folders.tokenizer())
    jobs["reward"] = {"folder": str(root / "reward")}
    lora = LoraSpec(r=4, targets=("q_proj", "embed_tokens"))
    lm = LM.load(ModelSpec(path=str(root / "tied"), device="cpu", lora=lora))
    with torch.no_grad():
        for p in lm.model.parameters():
            if p.requires_grad:
                p.add_(0.3)
    save_model(lm.model, root / "adapter", folders.tokenizer(), adapter=True)
    jobs["adapter"] = {"folder": str(root / "adapter"), "adapter": True}
    return {
        n: {**j, "ids": IDS, "text": "the red moon", "messages": MESSAGES} for n, j in jobs.items()
    }


def ours(job: dict[str, Any]) -> dict[str, np.ndarray]:
    """The same by this environment's transformers, which reads the old keys beside the new."""
    reward = job["folder"].endswith("reward")
    auto = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    tokens = folders.tokenizer()
    with torch.no_grad():
        model = auto.from_pretrained(job["folder"]).eval()
        found = model(input_ids=torch.tensor([job["ids"]])).logits[0].numpy()
    return {
        "logits": found,
        "text": np.array(tokens(job["text"])["input_ids"]),
        "messages": np.array(tokens.apply_chat_template(job["messages"], return_dict=False)),
        "special": np.array(tokens.all_special_ids),
    }


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_transformers_4_computes_what_the_run_did(tmp_path: Path) -> None:
    transformers4 = program("transformers 4", "transformers4", "transformers")
    jobs = exports(tmp_path)
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    out = tmp_path / "out.npz"
    assert transformers4.client("transformers4", tmp_path / "jobs.json", out) == len(jobs)
    largest = 0.0
    theirs = np.load(out)
    for name, job in jobs.items():
        if name != "qwen2":  # transformers 5 reads any tokenizer of this type as Qwen's
            read = AutoTokenizer.from_pretrained(job["folder"])
            assert read(job["text"]) == folders.tokenizer()(job["text"])
        for key, value in ours(job).items():
            got = theirs[f"{name}/{key}"]
            if key == "logits":
                largest = max(largest, float(np.abs(got - value).max()))
                np.testing.assert_allclose(got, value, atol=1e-4, rtol=1e-4, err_msg=name)
            else:
                assert sorted(got) == sorted(value) if key == "special" else [*got] == [*value], (
                    name,
                    key,
                )
    transformers4.report(
        f"logits, token ids and templates of {len(jobs)} exported folders: "
        f"{', '.join(jobs)} (peft 0.15.2)",
        f"largest difference of logits from transformers 5 {largest:.1g}; equal tokens",
    )
