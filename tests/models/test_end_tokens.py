"""A completion ends at the same tokens in training, in sampling, and in the exported folder."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, pipeline

import trimtab as tt
from tests.support import folders
from tests.support.models import tiny
from trimtab.models.export import save_model
from trimtab.models.load import LM, renderer_for
from trimtab.models.model_spec import ModelSpec
from trimtab.sample.sampler import Request, Sampler, SamplingConfig

ENDS = {"tokenizer": "<eos>", "template": "<end>", "generation_config": "<eom>", "config": "<stop>"}
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def tokenizer() -> Any:
    """The tests' tokenizer with the end tokens of Llama 3: one for each source."""
    tokens = folders.tokenizer()
    tokens.add_special_tokens({"additional_special_tokens": [*ENDS.values()][1:]})
    tokens.chat_template = TEMPLATE
    return tokens


def constant_model(token: int) -> Any:
    """A model that always emits ``token``: every hidden state is the same."""
    model: Any = tiny("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight[:] = 1.0
        model.lm_head.weight.zero_()
        model.lm_head.weight[token] = 1.0
    return model


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A model that always emits the end token of one source, and names each where it belongs."""
    tokens = tokenizer()
    ids = {k: tokens.convert_tokens_to_ids(v) for k, v in ENDS.items()}
    model = constant_model(ids[getattr(request, "param", "template")])
    model.config.eos_token_id = ids["config"]
    model.generation_config.eos_token_id = [ids["tokenizer"], ids["generation_config"]]
    model.save_pretrained(tmp_path / "lm")
    tokens.save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


@pytest.mark.parametrize("folder", ENDS, indirect=True)
def test_every_source_ends_sampling_and_the_export_names_all(folder: Path, tmp_path: Path) -> None:
    spec = ModelSpec(path=str(folder), device="cpu")
    renderer = renderer_for(spec)
    want = sorted(renderer.tokenizer.convert_tokens_to_ids(list(ENDS.values())))
    assert list(renderer.stop_ids) == want
    lm = LM.load(spec, train=False)
    sampler = Sampler(lm.plain_attention(), renderer.tokenizer, stop_ids=renderer.stop_ids)
    request = Request(np.array([4, 7]), (0,))
    sampled = sampler([request], SamplingConfig(temperature=0.0, max_new_tokens=8))[0][0]
    assert (len(sampled.ids), sampled.finish) == (1, "stop")

    out = tmp_path / "exported"
    save_model(lm.model, out, renderer.tokenizer, stop_ids=renderer.stop_ids)
    for name in ("generation_config.json", "config.json"):
        assert json.loads((out / name).read_text())["eos_token_id"] == want
    generate = pipeline("text-generation", str(out), device="cpu")
    chat = [{"role": "user", "content": "who is there ?"}]
    reply = generate(chat, max_new_tokens=8, return_tensors=True)[0]["generated_token_ids"]
    prompt = AutoTokenizer.from_pretrained(out).apply_chat_template(
        chat, add_generation_prompt=True, return_dict=False
    )
    assert len(reply) == len(prompt) + 1


def test_a_stage_exports_what_it_trained_as_an_end(folder: Path, tmp_path: Path) -> None:
    data = folders.demonstrations(tmp_path / "data.jsonl", 4)
    run = tt.sft(str(folder), str(data), out=tmp_path / "run", batch_size=4)
    values = json.loads((Path(run.model) / "generation_config.json").read_text())
    tokens = AutoTokenizer.from_pretrained(run.model)
    assert set(tokens.convert_ids_to_tokens(values["eos_token_id"])) == set(ENDS.values())
    assert values["pad_token_id"] == tokens.pad_token_id


def test_ids_of_another_vocabulary_are_ignored(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = folder / "generation_config.json"
    word, outside = tokenizer().convert_tokens_to_ids("moon"), 4000
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": [word, outside]}))
    config = json.loads((folder / "config.json").read_text())
    del config["eos_token_id"]  # Llama's class default, 2, is the id of a word in many vocabularies
    (folder / "config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING):
        renderer = renderer_for(ModelSpec(path=str(folder)))
    assert renderer.tokenizer.convert_ids_to_tokens(renderer.stop_ids) == ["<eos>", "<end>"]
    assert f"id {word}" in caplog.text
    assert f"id {outside}" in caplog.text


def test_a_generation_config_that_transformers_refuses_is_exported(
    folder: Path, tmp_path: Path
) -> None:
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "temperature": 0.6, "top_p": 0.9}))
    data = folders.demonstrations(tmp_path / "data.jsonl", 4)
    run = tt.sft(str(folder), str(data), out=tmp_path / "run", batch_size=4)
    values = json.loads((Path(run.model) / "generation_config.json").read_text())
    assert (values["temperature"], values["do_sample"]) == (0.6, True)
