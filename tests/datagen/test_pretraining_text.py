"""The text that the sandbox's base models were pretrained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from trimtab.cli.main import main
from trimtab.datagen.pretraining_text import document
from trimtab.sandbox.tokenizer import build


def test_documents_have_known_words_and_no_chat_format() -> None:
    tokenizer = build()
    special = {"<user>", "<assistant>", "<eos>", "<bos>", "<unk>"}
    texts = [document(np.random.default_rng((0, i)), 5, 0.6, 0.1) for i in range(300)]
    assert texts == [document(np.random.default_rng((0, i)), 5, 0.6, 0.1) for i in range(300)]
    for text in texts:
        tokens = tokenizer.tokenize(text)
        assert not special.intersection(tokens)
        assert len(tokens) < 300
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("kind", ["documents", "conversations"])
def test_the_documented_command_writes_text_tokenizer_and_configuration(
    kind: str, tmp_path: Path
) -> None:
    function = f"trimtab.datagen.pretraining_text:{kind}"
    main(["function", "--function", function, "--out", str(tmp_path), "--options.rows", "3"])
    assert len((tmp_path / "corpus.jsonl").read_text().splitlines()) == 3
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["vocab_size"] == len(build()) and config["intermediate_size"] == 352
    assert (tmp_path / "tokenizer" / "tokenizer.json").is_file()
