"""The keys for transformers 4 in an exported folder; the programs are in tests/neighbours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer

from tests.support import folders
from tests.support.models import tiny
from trimtab.models.export import add_transformers4_keys, save_model

YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
PLAIN = {"rope_type": "default", "rope_theta": 5e5}
LAYERS = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
WANT: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("llama", {"rope_parameters": PLAIN}, {"rope_theta": 5e5, "torch_dtype": "bfloat16"}),
    (
        "qwen3",
        {"rope_parameters": YARN},
        {"rope_theta": 1e6, "rope_scaling": {k: v for k, v in YARN.items() if k != "rope_theta"}},
    ),
    (
        "gemma3_text",
        {"rope_parameters": LAYERS},
        {
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
    (
        "stablelm",
        {"rope_parameters": PLAIN, "partial_rotary_factor": 0.5},
        {"rope_theta": 5e5, "partial_rotary_factor": 0.5},
    ),
    ("gpt2", {}, {}),
]


@pytest.mark.parametrize(("kind", "fields", "want"), WANT)
def test_old_keys_stand_beside_the_new(
    kind: str, fields: dict[str, Any], want: dict[str, Any], tmp_path: Path
) -> None:
    config = AutoConfig.for_model(kind, **fields)
    config.dtype = "bfloat16"
    config.save_pretrained(tmp_path)
    before = AutoConfig.from_pretrained(tmp_path).to_dict()
    add_transformers4_keys(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert {k: values.get(k) for k in want} == want
    assert ("rope_scaling" in values) == ("rope_scaling" in want)
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == before


def test_every_saved_model_has_the_old_keys(tmp_path: Path) -> None:
    save_model(tiny("llama"), tmp_path, folders.tokenizer())
    values = json.loads((tmp_path / "config.json").read_text())
    assert {"rope_theta", "torch_dtype"} <= values.keys()
    tokenizer = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_a_tokenizer_for_both_versions(tmp_path: Path) -> None:
    tokenizer = folders.tokenizer()
    tokenizer.save_pretrained(tmp_path)
    before = AutoTokenizer.from_pretrained(tmp_path)
    add_transformers4_keys(tmp_path)
    values = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert values["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert values["model_input_names"] == ["input_ids", "attention_mask"]
    assert values["additional_special_tokens"] == ["<user>", "<assistant>"]
    after = AutoTokenizer.from_pretrained(tmp_path)
    assert type(after) is type(before)
    assert after.get_vocab() == before.get_vocab()
    assert after.all_special_tokens == before.all_special_tokens
    assert after.chat_template == before.chat_template
    text = "<user> who is there ?"
    assert after(text) == before(text)
    assert after.decode(after(text)["input_ids"], skip_special_tokens=True) == "who is there ?"
