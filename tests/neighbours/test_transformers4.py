"""Exported folders under a real transformers 4, which RewardBench and other programs pin.

Make an environment once and name its Python:

    python -m venv ENV && ENV/bin/pip install torch transformers==4.51.3 peft==0.15.2
    TRIMTAB_TRANSFORMERS4=ENV/bin/python pytest tests/neighbours
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.support import folders
from tests.support.models import tiny
from trimtab.models.export import save_model
from trimtab.models.heads import Scorer
from trimtab.models.load import LM
from trimtab.models.lora import LoraSpec
from trimtab.models.model_spec import ModelSpec

READER = Path(__file__).with_name("transformers4_reader.py")
PYTHON = os.environ.get("TRIMTAB_TRANSFORMERS4", "")
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
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.skipif(
    not Path(PYTHON).is_file(), reason="no TRIMTAB_TRANSFORMERS4: a Python with transformers 4"
)
def test_transformers_4_computes_what_the_run_did(tmp_path: Path) -> None:
    jobs = exports(tmp_path)
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    command = [PYTHON, str(READER), str(tmp_path / "jobs.json"), str(tmp_path / "out.npz")]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = np.load(tmp_path / "out.npz")
    for name, job in jobs.items():
        if name != "qwen2":  # transformers 5 reads any tokenizer of this type as Qwen's
            read = AutoTokenizer.from_pretrained(job["folder"])
            assert read(job["text"]) == folders.tokenizer()(job["text"])
        for key, value in ours(job).items():
            got = theirs[f"{name}/{key}"]
            if key == "logits":
                np.testing.assert_allclose(got, value, atol=1e-4, rtol=1e-4, err_msg=name)
            else:
                assert sorted(got) == sorted(value) if key == "special" else [*got] == [*value], (
                    name,
                    key,
                )
