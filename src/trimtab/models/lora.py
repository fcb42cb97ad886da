"""LoRA adapters (2106.09685) by peft: their configuration, and a model with them.

peft and transformers are imported where a model is loaded, so that configurations are read without them.
"""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, cast

import torch
from torch import nn

from trimtab.config import Config

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

Task = Literal["CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS"]
"""What a model is used for, in peft's words."""


class LoraSpec(Config):
    """LoRA adapters (peft). The reference model is then the same model with the adapters disabled."""

    r: int = 16
    """Rank; 0 turns adapters off."""
    alpha: int = 32
    """Scale is alpha / r."""
    dropout: float = 0.0
    """Dropout rate of the adapters' input."""
    targets: tuple[str, ...] = ()
    """Names of the modules to adapt; empty means every linear layer except the output head."""
    modules_to_save: tuple[str, ...] = ()
    """Names of modules that are trained in full and saved with the adapter."""


def has_adapter(model: object) -> TypeGuard[PeftModel]:
    """Whether ``model`` is a transformers model with adapters around it."""
    peft = sys.modules.get("peft")  # no model has adapters before somebody imports it
    return peft is not None and isinstance(model, peft.PeftModel)


def add_lora(
    model: nn.Module, spec: LoraSpec, task: Task, seed: int, base: str | None
) -> PeftModel:
    """Wrap ``model`` with LoRA adapters initialised from ``seed``.

    Args:
        model: A transformers model.
        spec: The adapters.
        task: Decides which head peft trains in full.
        seed: Of the random weights.
        base: Where the model is, for the exported adapter; None where it is on no disk.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        r=spec.r,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=list(spec.targets) or "all-linear",
        # peft trains a new head in full, but excludes it from adapters for sequence classifiers only.
        exclude_modules=["score", "classifier"] if task == "TOKEN_CLS" else None,
        modules_to_save=list(spec.modules_to_save) or None,
        task_type=TaskType(task),
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tied embeddings: see ``trimtab.models.adapters.merge``
        torch.manual_seed(seed)
        peft_model = cast("PeftModel", get_peft_model(cast("PreTrainedModel", model), config))
    cast(Any, peft_model.peft_config["default"]).base_model_name_or_path = base
    return peft_model
