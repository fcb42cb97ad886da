"""Scalar heads: a reward model's score per completion, or a critic's value per token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from trimtab.data.pack import Pack
from trimtab.errors import ModelError
from trimtab.models.forward import hidden_states
from trimtab.models.load import (
    backbone_of,
    base_of,
    check_sharing,
    plain_attention_of,
    prepare,
    uses_mixed_precision,
)
from trimtab.models.lora import Task
from trimtab.models.model_spec import ModelSpec
from trimtab.models.weights import load_weights


class Scorer:
    """A model with one scalar output: a reward model (at last tokens) or a critic (at every state).

    It is a transformers sequence classification model with one label, so plain transformers loads
    the saved folder and computes equal scores.

    Attributes:
        model: The classification model, or the peft model around it.
        mean, std: Normalisation saved in the config (``reward_mean``, ``reward_std``); applied by
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
        """Load a classifier folder, or a language model with a new head.

        Args:
            train: False freezes it.
            pad_id: Padding id for the saved config; must differ from every real last token.
            zero: Initialise a new head to zero (a critic whose first values are 0).

        Raises:
            ModelError: The architecture has no sequence classification class, or ``train`` is
                False and the folder has no trained head.
        """
        from transformers import AutoModelForSequenceClassification as Auto

        classifier = load_classifier(Auto, spec, "SEQ_CLS", 1, train=train, pad_id=pad_id)
        if zero and classifier.fresh:
            nn.init.zeros_(score_layer(classifier.model).weight)
        return cls(
            classifier.model,
            spec,
            exact=classifier.exact,
            plain=classifier.plain,
            mixed=classifier.mixed,
        )

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return base_of(self.model).device

    def _raw(self, pack: Pack, index: Tensor) -> Tensor:
        states = hidden_states(
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
        """Set the normalisation statistics; they are saved with the config."""
        self.mean, self.std = mean, std
        config = cast(Any, base_of(self.model).config)
        config.reward_mean, config.reward_std = mean, std


@dataclass(slots=True)
class Classifier:
    """A transformers classification model prepared for packs."""

    model: nn.Module
    exact: bool
    """Whether packs share prompts."""
    plain: str
    """Attention implementation outside packs."""
    fresh: bool
    """Whether the head is newly initialised."""
    mixed: bool
    """Whether matmuls are computed in bfloat16."""


def load_classifier(
    auto: Any, spec: ModelSpec, task: Task, labels: int, *, train: bool, pad_id: int | None
) -> Classifier:
    """Load a folder with the transformers class ``auto``, or a language model with a new head.

    Only a model to be trained may have a new head.

    Raises:
        ModelError: the architecture has no such class, or the folder has another kind of head, or
            ``train`` is False and it has none.
    """
    weights = load_weights(auto, spec, task, labels, train=train)
    model = prepare(weights, spec, task, train=train)
    config = cast(Any, base_of(model).config)
    if pad_id is not None:
        config.pad_token_id = pad_id
        config.get_text_config().pad_token_id = pad_id
    plain = plain_attention_of(model)
    exact = check_sharing(model, plain)
    mixed = uses_mixed_precision(
        spec, base_of(model).device, int(config.get_text_config().hidden_size)
    )
    # No dropout: equal completions must get equal scores.
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return Classifier(model, exact, plain, weights.new_head, mixed)


def score_layer(model: nn.Module) -> Any:
    """The linear head of a classification model."""
    inner = base_of(model)
    for name in ("score", "classifier"):
        layer = getattr(inner, name, None)
        if isinstance(layer, nn.Module):
            return layer
    raise ModelError(f"{type(inner).__name__} has no scalar head that trimtab supports")
