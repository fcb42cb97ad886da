"""Process reward model: P(step correct) at the last token of each reasoning step."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from trimtab.data.pack import Pack
from trimtab.models.forward import hidden_states
from trimtab.models.heads import load_classifier, score_layer
from trimtab.models.load import ModelSpec, backbone_of, base_of


def trained_positions(pack: Pack) -> Tensor:
    """Index into N of each trained token itself [C] (``source_C`` is the one before it)."""
    parts: list[np.ndarray] = []
    completions = (c for g in pack.groups for c in g.completions)
    for last, c in zip(pack.last_B.tolist(), completions, strict=True):
        parts.append(last - len(c) + 1 + np.flatnonzero(c.mask))
    positions = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    return torch.from_numpy(positions.astype(np.int64)).to(pack.ids_N.device)


class StepScorer:
    """Two logits per token; label 1 means "the step that ends here is correct".

    It is a transformers token classification model with two labels, so plain transformers loads the
    saved folder and computes equal logits.

    Attributes:
        model: The classification model, or the peft model around it.
    """

    def __init__(
        self, model: nn.Module, *, exact: bool, plain: str = "sdpa", mixed: bool = False
    ) -> None:
        self.model = model
        self.exact = exact
        self.plain = plain
        self.mixed = mixed

    @classmethod
    def load(cls, spec: ModelSpec, *, train: bool = True, pad_id: int | None = None) -> StepScorer:
        """Load a process reward model's folder, or a language model with a new head.

        Args:
            spec: The model to load.
            train: False freezes it.
            pad_id: Padding id for the saved config.

        Raises:
            ModelError: the architecture has no token classification class, or the folder holds
                another kind of classifier.
        """
        from transformers import AutoModelForTokenClassification as Auto

        classifier = load_classifier(Auto, spec, "TOKEN_CLS", 2, train=train, pad_id=pad_id)
        config = cast(Any, base_of(classifier.model).config)
        config.id2label, config.label2id = (
            {0: "incorrect", 1: "correct"},
            {"incorrect": 0, "correct": 1},
        )
        return cls(
            classifier.model, exact=classifier.exact, plain=classifier.plain, mixed=classifier.mixed
        )

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return base_of(self.model).device

    def logits(self, pack: Pack) -> Tensor:
        """Both logits [C, 2] at each trained token; mask the step ends to score steps."""
        at = trained_positions(pack)
        states = hidden_states(
            backbone_of(self.model), pack, at, exact=self.exact, plain=self.plain, mixed=self.mixed
        )
        return score_layer(self.model)(states).float()

    def log_odds(self, pack: Pack) -> Tensor:
        """log p/(1-p) [C] that the step ending at each trained token is correct."""
        both = self.logits(pack)
        return both[:, 1] - both[:, 0]
