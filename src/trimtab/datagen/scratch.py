"""``trimtab scratch``: a tokenizer and a model configuration, to train from scratch."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from trimtab.config import Config
from trimtab.data import sources
from trimtab.data.load_tokenizer import PLAIN
from trimtab.datagen.output import write_summary
from trimtab.errors import DataError
from trimtab.runs import write_atomic

log = logging.getLogger(__name__)


class ScratchConfig(Config):
    """Configuration of ``trimtab scratch``: a tokenizer and a small random Llama for some data.

    For machines without access to a hub, and to try a pipeline on real text within minutes. Such a
    model learns the style of its data and little else.
    """

    out: str = "runs/scratch"
    data: str
    """Rows whose texts the tokenizer is trained on."""
    vocab: int = Field(default=4096, ge=300)
    """Vocabulary size of the byte-level BPE tokenizer."""
    hidden: int = Field(default=192, gt=0)
    layers: int = Field(default=4, gt=0)
    heads: int = Field(default=6, gt=0)
    positions: int = Field(default=1024, gt=0)


@dataclass(frozen=True, slots=True)
class ScratchSummary:
    """Vocabulary size, and the number of texts that the tokenizer is trained on."""

    vocabulary: int
    texts: int


def main(config: ScratchConfig) -> ScratchSummary:
    """Write tokenizer/ and config.json (for ``model.path``) into ``out``.

    Raises:
        DataError: no row has text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = [t for _, row in sources.read(config.data).rows for t in _texts(row)]
    if not texts:
        raise DataError(f"{config.data}: no row has text to train a tokenizer on; check data")
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
    write_model_config(out, tokenizer, config.hidden, config.layers, config.heads, config.positions)
    summary = ScratchSummary(len(tokenizer), len(texts))
    write_summary(out, summary)
    log.info(f"{out.name}: {summary.vocabulary} tokens from {summary.texts} texts -> {out}")
    return summary


def write_model_config(
    out: Path,
    tokenizer: Any,
    hidden: int,
    layers: int,
    heads: int,
    positions: int,
    overrides: Mapping[str, Any] | None = None,
) -> None:
    """Write config.json of a Llama with random weights into the folder ``out``, for ``tokenizer``.

    Args:
        positions: Its longest sequence in tokens.
        overrides: Other values of config.json, and further ones.
    """
    config = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": hidden * 11 // 4,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": positions,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **(overrides or {}),
    }
    write_atomic(out / "config.json", json.dumps(config, indent=1).encode())


def _texts(value: Any) -> list[str]:
    """Every text in a row, those of messages and lists included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [t for k, v in value.items() if k != "role" for t in _texts(v)]
    if isinstance(value, list):
        return [t for v in value for t in _texts(v)]
    return []
