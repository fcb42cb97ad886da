"""Export: a Hugging Face folder that other programs read as the run did."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from trimtab.models.adapters import merge, save_adapter
from trimtab.models.forward import set_attention
from trimtab.models.load import base_of


def save_model(
    model: nn.Module,
    folder: Path,
    tokenizer: Any,
    plain: str = "sdpa",
    stop_ids: Sequence[int] = (),
    *,
    adapter: bool = False,
) -> None:
    """Save as a Hugging Face folder.

    Args:
        model: A transformers model, or a peft model around it.
        folder: Is created.
        tokenizer: Is saved with the model.
        plain: Attention implementation outside packs.
        stop_ids: Every id that ends a completion, for programs that generate.
        adapter: Save the adapters alone, as peft does, instead of merging them into the weights.
    """
    inner = base_of(model)
    set_attention(inner, plain)
    if inner.can_generate() and stop_ids:
        _set_end_tokens(inner, tokenizer, stop_ids)
    if adapter:
        assert isinstance(model, PeftModel), "the configuration is checked before"
        save_adapter(model, folder, tokenizer)
    else:
        if isinstance(model, PeftModel):
            inner = merge(copy.deepcopy(model))
        inner.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def _set_end_tokens(model: PreTrainedModel, tokenizer: Any, stop_ids: Sequence[int]) -> None:
    """Name every end token in the config and the generation config, and the token to pad with."""
    ends = list(stop_ids) if len(stop_ids) > 1 else stop_ids[0]
    generation = model.generation_config
    generation.eos_token_id = ends
    generation.pad_token_id = tokenizer.pad_token_id
    cast(Any, model.config.get_text_config()).eos_token_id = ends
    try:
        generation.validate(strict=True)
    except ValueError:
        # Some hub models have a temperature without do_sample, which transformers refuses to save.
        generation.do_sample = True
