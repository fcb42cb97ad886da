"""Which model a stage loads, and how."""

from __future__ import annotations

import os
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from trimtab.config import Config
from trimtab.models.lora import LoraSpec

DType = Literal["float32", "bfloat16"]


class ModelSpec(Config):
    """Which model to load, and how."""

    free_keys: ClassVar[frozenset[str]] = frozenset({"device", "gradient_checkpointing", "shard"})
    model_keys: ClassVar[frozenset[str]] = frozenset({"path", "tokenizer"})

    path: str = Field(description="Local folder, hub id, or a JSON file with a transformers config")
    """A folder or hub id is loaded with its weights; a JSON file gives random weights."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer, if it is not in ``path``."""
    chat_template: str | None = None
    """A template file, or the built-in "plain", for a tokenizer without a chat template."""
    dtype: DType = "float32"
    """Dtype of the weights."""
    precision: Literal["full", "mixed", "auto"] = "full"
    """"mixed" computes matmuls in bfloat16 with float32 weights; "auto" does so if a short
    measurement at the start shows that it is faster."""
    device: str = "auto"
    """ "auto" uses CUDA if it is available."""
    lora: LoraSpec | None = None
    """Train adapters instead of the whole model."""
    adapter: Literal["merge", "continue"] = "merge"
    """Where ``path`` holds an adapter (peft, TRL): "merge" adds it to the weights of its base before
    training, so that ``lora`` starts a new one; "continue" trains it further."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    shard: Literal["none", "full"] = "none"
    """With several ranks: "none" keeps the whole model on each of them, "full" a part of its weights,
    gradients and optimiser states on each (FSDP2)."""
    seed: int = 0
    """Seed of the weights that are not loaded (a model from scratch, a new head)."""

    @property
    def trains_adapters(self) -> bool:
        """Whether adapters are trained, and not the whole model."""
        return self.adapter == "continue" or (self.lora is not None and self.lora.r > 0)

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": str(value)} if isinstance(value, str | os.PathLike) else value

    @model_validator(mode="after")
    def _one_adapter(self) -> ModelSpec:
        if self.adapter == "continue" and self.lora is not None:
            raise ValueError(
                "adapter: continue trains the adapter in path, and lora starts a new one; remove one "
                "of the two keys"
            )
        return self
