"""Frozen models that score the policy's completions: references and learned rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

from trimtab.data.load_tokenizer import load_tokenizer
from trimtab.data.render import Renderer
from trimtab.errors import ModelError
from trimtab.models.load import LM, ModelSpec


class Loadable(Protocol):
    """A class of models: ``LM``, ``Scorer`` or ``StepScorer``."""

    @classmethod
    def load(cls, spec: ModelSpec, *, train: bool) -> Self:
        """Load the model; ``train`` False freezes it."""
        ...


M = TypeVar("M", bound=Loadable)


@dataclass(slots=True)
class Frozen(Generic[M]):
    """A frozen model and its tokenizer."""

    model: M
    renderer: Renderer
    """Has the model's own tokenizer and chat template."""
    same_vocabulary: bool
    """Whether the policy's token ids mean the same to this model."""
    same_template: bool
    """Whether it also has the policy's chat template."""


def load_frozen(kind: type[M], spec: ModelSpec, policy_tokenizer: Any) -> Frozen[M]:
    """Load a frozen model of class ``kind`` and its renderer.

    A model without a chat template is given the policy's, if it has its vocabulary.

    Raises:
        ModelError: the model or its tokenizer cannot be loaded.
    """
    model = kind.load(spec, train=False)
    tokenizer = load_tokenizer(spec.tokenizer or spec.path, spec.chat_template)
    same_vocabulary = tokenizer.get_vocab() == policy_tokenizer.get_vocab()
    if same_vocabulary and not tokenizer.chat_template:
        tokenizer.chat_template = policy_tokenizer.chat_template
    same_template = tokenizer.chat_template == policy_tokenizer.chat_template
    return Frozen(model, Renderer(tokenizer), same_vocabulary, same_template)


def load_reference(spec: ModelSpec, policy_tokenizer: Any, key: str = "reference") -> LM:
    """Load a frozen language model that reads the policy's token ids.

    Args:
        key: The configuration key of the model, for the error message.

    Raises:
        ModelError: its vocabulary is not the policy's, or it cannot be loaded.
    """
    tokenizer = load_tokenizer(spec.tokenizer or spec.path, spec.chat_template)
    if tokenizer.get_vocab() != policy_tokenizer.get_vocab():
        raise ModelError(
            f"{key}: {spec.path!r} has another vocabulary than the policy, so their log-probs cannot "
            "be compared token by token; use a model with the same tokenizer"
        )
    return LM.load(spec, train=False)
