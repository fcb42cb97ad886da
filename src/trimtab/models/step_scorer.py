"""A process reward model: P(step correct) at the last token of each step of a packed tree."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from peft import TaskType
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification

from trimtab.data.pack import Pack
from trimtab.models.forward import hidden
from trimtab.models.heads import load_classifier, score_layer
from trimtab.models.load import ModelSpec, backbone_of, base_of


def trained_positions(pack: Pack) -> Tensor:
    """Index into N of each trained token itself [C] (``source_C`` is the one before it)."""
    parts: list[np.ndarray] = []
    completions = (c for g in pack.groups for c in g.completions)
    for last, c in zip(pack.last_B.tolist(), completions, strict=True):
        parts.append(last - len(c) + 1 + np.flatnonzero(c.mask))
    at = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    return torch.from_numpy(at.astype(np.int64)).to(pack.ids_N.device)


class StepScorer:
    """Two logits at every token; label 1 is "the step that ends here is correct".

    Kept as transformers' token classification model with two labels, so that its folder is loaded
    by plain transformers with equal logits.

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
        """Load a process reward model's folder, or a language model whose head is then new.

        Args:
            spec: What to load.
            train: False freezes it.
            pad_id: Padding id for the saved config.

        Raises:
            ModelError: the architecture has no token classification form, or the folder is a
                classifier of another kind.
        """
        auto = AutoModelForTokenClassification
        found = load_classifier(auto, spec, TaskType.TOKEN_CLS, 2, train=train, pad_id=pad_id)
        config = cast(Any, base_of(found.model).config)
        config.id2label, config.label2id = (
            {0: "incorrect", 1: "correct"},
            {"incorrect": 0, "correct": 1},
        )
        return cls(found.model, exact=found.exact, plain=found.plain, mixed=found.mixed)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return base_of(self.model).device

    def logits(self, pack: Pack) -> Tensor:
        """Both logits [C, 2] at each trained token; mask the step ends to score steps."""
        at = trained_positions(pack)
        states = hidden(
            backbone_of(self.model), pack, at, exact=self.exact, plain=self.plain, mixed=self.mixed
        )
        return score_layer(self.model)(states).float()

    def log_odds(self, pack: Pack) -> Tensor:
        """log p/(1-p) [C] that the step ending at each trained token is correct."""
        both = self.logits(pack)
        return both[:, 1] - both[:, 0]
