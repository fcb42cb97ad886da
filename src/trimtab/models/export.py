"""Export: a Hugging Face folder that other programs read as the run did."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from trimtab.models.adapters import merge, save_adapter
from trimtab.models.forward import set_attention
from trimtab.models.load import base_of
from trimtab.models.lora import has_adapter
from trimtab.runs import write_atomic

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
        assert has_adapter(model), "the configuration is checked before"
        save_adapter(model, folder, tokenizer)
    else:
        if has_adapter(model):
            inner = merge(copy.deepcopy(model))
        inner.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    add_transformers4_keys(folder)
    if adapter and (base := folder.parent / "base").is_dir():
        add_transformers4_keys(base)


def add_transformers4_keys(folder: Path) -> None:
    """Write what transformers 4 reads (RewardBench, mlx-lm, older vLLM) beside the keys of version 5.

    Without ``rope_theta`` version 4 silently computes with 10,000, without ``model_input_names`` it passes
    ``token_type_ids`` to the model, and it has no class TokenizersBackend.
    """
    file = folder / "config.json"
    if file.is_file():
        values = json.loads(file.read_text(encoding="utf-8"))
        for part in (values, values.get("text_config")):
            if part:
                part.update(_rope4(part))
                if "dtype" in part:
                    part["torch_dtype"] = part["dtype"]
        _write(file, values)
    file = folder / "tokenizer_config.json"
    if file.is_file():
        values = json.loads(file.read_text(encoding="utf-8"))
        values.setdefault("model_input_names", ["input_ids", "attention_mask"])
        if values.get("tokenizer_class") == "TokenizersBackend":
            values["tokenizer_class"] = "PreTrainedTokenizerFast"
        if isinstance(values.get("extra_special_tokens"), list):  # a mapping in version 4
            values["additional_special_tokens"] = values.pop("extra_special_tokens")
        _write(file, values)


def _rope4(config: dict[str, Any]) -> dict[str, Any]:
    """The position keys of version 4 for ``rope_parameters``, which may be per type of layer."""
    rope: dict[str, Any] = config.get("rope_parameters") or {}
    full = rope.get("full_attention", rope)
    if "rope_theta" not in full:
        return {}
    keys: dict[str, Any] = {"rope_theta": full["rope_theta"]}
    if "partial_rotary_factor" in full:
        keys["partial_rotary_factor"] = full["partial_rotary_factor"]
    if full.get("rope_type", "default") != "default":
        keys["rope_scaling"] = {k: v for k, v in full.items() if k not in keys}
    local = rope.get("sliding_attention")
    if local and "rope_theta" in local:
        keys["rope_local_base_freq"] = local["rope_theta"]
    return keys


def _write(file: Path, values: dict[str, Any]) -> None:
    text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False)
    write_atomic(file, f"{text}\n".encode())


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
