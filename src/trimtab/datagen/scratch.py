"""Stages that make what others start from: any function, or a small model from scratch."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from pydantic import Field

from trimtab.config import Config, import_function
from trimtab.data import sources
from trimtab.data.render import PLAIN
from trimtab.datagen.output import write_summary
from trimtab.errors import DataError
from trimtab.runs import write_atomic

log = logging.getLogger(__name__)


class FunctionConfig(Config):
    """Configuration of a stage that is a Python function."""

    out: str = "runs/function"
    function: str
    """ "package.module:name" or "file.py:name", called as ``f(out, **options)``; it writes its files
    into the folder ``out`` and returns summary for ``summary.json``, or nothing."""
    options: dict[str, Any] = Field(default_factory=dict[str, Any])


def function(config: FunctionConfig) -> dict[str, Any]:
    """Call it."""
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    summary: dict[str, Any] = import_function(config.function)(out, **config.options) or {}
    write_summary(out, summary)
    log.info(f"{out.name}: {_line(summary)} -> {out}")
    return summary


class ScratchConfig(Config):
    """Configuration of a tokenizer and a small random Llama for the data at hand.

    For machines without a hub, and to see a pipeline work on real text in minutes; such a model
    learns the style of its data and little else.
    """

    out: str = "runs/scratch"
    data: str
    """Rows whose texts the tokenizer is trained on."""
    vocab: int = Field(default=4096, ge=300)
    """Tokens of a byte-level BPE."""
    hidden: int = Field(default=192, gt=0)
    layers: int = Field(default=4, gt=0)
    heads: int = Field(default=6, gt=0)
    positions: int = Field(default=1024, gt=0)


def scratch(config: ScratchConfig) -> dict[str, Any]:
    """Write tokenizer/ and config.json (a start for ``model.path``) into ``out``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = [t for _, row in sources.read(config.data).rows for t in _texts(row)]
    if not texts:
        raise DataError(f"{config.data}: no row holds text to train a tokenizer on")
    special = ["<pad>", "<bos>", "<eos>"]
    inner: Any = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # pyright: ignore[reportCallIssue]
    inner.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = PLAIN
    out = Path(config.out)
    tokenizer.save_pretrained(out / "tokenizer")
    model = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": config.hidden,
        "intermediate_size": config.hidden * 11 // 4,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.heads,
        "max_position_embeddings": config.positions,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    write_atomic(out / "config.json", json.dumps(model, indent=1).encode())
    summary = {"vocabulary": len(tokenizer), "texts": len(texts)}
    write_summary(out, summary)
    log.info(f"{out.name}: {_line(summary)} -> {out}")
    return summary


def _line(summary: dict[str, Any]) -> str:
    return ", ".join(f"{v:.4g} {k.replace('_', ' ')}" for k, v in summary.items()) or "done"


def _texts(value: Any) -> list[str]:
    """Every text in a row, inside messages and lists too."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [t for k, v in value.items() if k != "role" for t in _texts(v)]
    if isinstance(value, list):
        return [t for v in value for t in _texts(v)]
    return []
