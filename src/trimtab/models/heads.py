"""Scalar heads: a score at a completion's last token, or a value at every state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import TaskType
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from trimtab.data.pack import Pack
from trimtab.errors import ModelError
from trimtab.models.forward import hidden
from trimtab.models.load import (
    LM,
    ModelSpec,
    add_lora,
    backbone_of,
    base_of,
    checkpoint_layers,
    load_pretrained,
    pick_device,
)


class Scorer:
    """A model with one scalar output: a reward model (at last tokens) or a critic (at states).

    Kept as transformers' sequence classification model with one label, so that its folder is
    loaded by plain transformers with equal scores.

    Attributes:
        model: The classification model, or the peft model around it.
        mean, std: Normalisation kept in its config (``reward_mean``, ``reward_std``), applied by
            ``normalise`` at inference only.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: ModelSpec,
        *,
        exact: bool,
        plain: str = "sdpa",
        mixed: bool = False,
    ) -> None:
        self.model = model
        self.spec = spec
        self.exact = exact
        self.plain = plain
        self.mixed = mixed
        config = cast(Any, base_of(model).config)
        self.mean = float(getattr(config, "reward_mean", 0.0))
        self.std = float(getattr(config, "reward_std", 1.0))

    @classmethod
    def load(
        cls, spec: ModelSpec, *, train: bool = True, pad_id: int | None = None, zero: bool = False
    ) -> Scorer:
        """Load a classifier folder, or a language model whose head is then new.

        Args:
            spec: What to load.
            train: False freezes it.
            pad_id: Padding id for the saved config; must differ from every real last token.
            zero: Start the head at zero (a critic that first says 0 everywhere).

        Raises:
            ModelError: The architecture has no sequence classification form.
        """
        found = load_classifier(
            AutoModelForSequenceClassification,
            spec,
            TaskType.SEQ_CLS,
            1,
            train=train,
            pad_id=pad_id,
        )
        if zero and found.fresh:
            nn.init.zeros_(score_layer(found.model).weight)
        return cls(found.model, spec, exact=found.exact, plain=found.plain, mixed=found.mixed)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return base_of(self.model).device

    def _raw(self, pack: Pack, index: Tensor) -> Tensor:
        states = hidden(
            backbone_of(self.model),
            pack,
            index,
            exact=self.exact,
            plain=self.plain,
            mixed=self.mixed,
        )
        return score_layer(self.model)(states)[:, 0].float()

    def scores(self, pack: Pack) -> Tensor:
        """Raw score [B] at each completion's last token (ALGORITHMS: r = w.h)."""
        return self._raw(pack, pack.last_B)

    def values(self, pack: Pack) -> Tensor:
        """Value [C] of the state before each trained token."""
        return self._raw(pack, pack.source_C)

    def normalise(self, scores: Tensor) -> Tensor:
        """(score - mean) / std with the statistics saved with the model."""
        return (scores - self.mean) / self.std

    def set_normalisation(self, mean: float, std: float) -> None:
        """Keep the statistics; they are saved with the config."""
        self.mean, self.std = mean, std
        config = cast(Any, base_of(self.model).config)
        config.reward_mean, config.reward_std = mean, std


@dataclass(slots=True)
class Classifier:
    """A transformers classification model, ready for packs."""

    model: nn.Module
    exact: bool
    """Whether packs share prompts."""
    plain: str
    """Attention to use outside packs."""
    fresh: bool
    """Whether the head is new."""
    mixed: bool
    """Whether products are made in bfloat16."""


def load_classifier(
    auto: Any, spec: ModelSpec, task: TaskType, labels: int, *, train: bool, pad_id: int | None
) -> Classifier:
    """Load a folder of the form ``auto``, or a language model whose head is then new.

    Raises:
        ModelError: the architecture has no such form, or the folder has another kind of head.
    """
    # The check needs logits, which only the language model form gives.
    lm = LM.load(spec.model_copy(update={"lora": None}), train=False)
    exact, plain, mixed = lm.exact, lm.plain, lm.mixed
    saved = " ".join(getattr(lm.model.config, "architectures", None) or [])
    had = int(cast(Any, lm.model.config).num_labels)
    del lm
    mine = str(auto.__name__).removeprefix("AutoModelFor")
    if ("Classification" in saved) and (mine not in saved or had != labels):
        raise ModelError(
            f"{spec.path}: is a {saved} with {had} labels, but {mine} with {labels} is needed; "
            "start from a language model, or from a folder that this stage saved"
        )
    model = cast(nn.Module, load_pretrained(auto, spec, num_labels=labels))
    config = cast(Any, base_of(model).config)
    if pad_id is not None:
        config.pad_token_id = pad_id
        config.get_text_config().pad_token_id = pad_id
    model = model.to(pick_device(spec.device))
    if train and spec.lora is not None and spec.lora.r > 0:
        model = add_lora(model, spec.lora, task, spec.seed)
    else:
        model.requires_grad_(train)
    if train and spec.gradient_checkpointing:
        checkpoint_layers(model)
    model.train(train)
    # Dropout off: it makes scores of equal answers differ.
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return Classifier(model, exact, plain, mine not in saved, mixed)


def score_layer(model: nn.Module) -> Any:
    """The linear head of a classification model."""
    inner = base_of(model)
    for name in ("score", "classifier"):
        layer = getattr(inner, name, None)
        if isinstance(layer, nn.Module):
            return layer
    raise ModelError(f"{type(inner).__name__} has no scalar head that trimtab knows")
