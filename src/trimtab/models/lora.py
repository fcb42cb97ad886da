"""LoRA adapters (2106.09685) by peft: their configuration, and a model with them."""

from __future__ import annotations

from typing import cast

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from trimtab.config import Config


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


def add_lora(model: nn.Module, spec: LoraSpec, task: TaskType, seed: int) -> PeftModel:
    """Wrap ``model`` with LoRA adapters initialised from ``seed``."""
    config = LoraConfig(
        r=spec.r,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=list(spec.targets) or "all-linear",
        # peft trains a new head in full, but excludes it from adapters for sequence classifiers only.
        exclude_modules=["score", "classifier"] if task == TaskType.TOKEN_CLS else None,
        task_type=task,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return cast(PeftModel, get_peft_model(cast(PreTrainedModel, model), config))
