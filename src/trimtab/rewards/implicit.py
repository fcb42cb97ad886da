"""DPO's implicit token reward: the log-ratio of a preference-trained policy to its reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from trimtab.config import Config
from trimtab.data.load_tokenizer import load_tokenizer
from trimtab.data.pack import packs
from trimtab.data.render import Renderer
from trimtab.models.load import ModelSpec
from trimtab.models.load_frozen import load_reference
from trimtab.objectives.advantage import implicit_rewards
from trimtab.types import Group, Score


class ImplicitSpec(Config):
    """r_t = beta (log pi_dpo - log pi_ref) on every token (2404.12358)."""

    model_keys: ClassVar[frozenset[str]] = frozenset({"model", "reference"})

    name: str = Field(default="implicit", min_length=1)
    """Name of the part in metrics and samples, which have the sum over the completion."""
    model: str
    """Folder or hub id of the policy that was trained on preferences."""
    reference: str
    """Folder or hub id of its reference model."""
    beta: float = Field(default=0.1, gt=0.0)
    """The beta that it was trained with."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor of the rewards; 0 records them without training on them."""


class ImplicitReward:
    """Writes the reward of every token to the column "dense" [T], and the sum as a score.

    Each model reads the prompt in its own chat template, and then the policy's completion ids.

    Args:
        renderer: The policy's; both models must have its vocabulary.

    Raises:
        ModelError: a model cannot be loaded, or has another vocabulary.
    """

    def __init__(
        self, spec: ImplicitSpec, renderer: Renderer, token_budget: int, device: str = "auto"
    ) -> None:
        self.spec = spec
        self.budget = token_budget
        self.trained, self.reference = (
            _Policy(path, key, renderer.tokenizer, device)
            for key, path in (
                ("implicit.model", spec.model),
                ("implicit.reference", spec.reference),
            )
        )

    @torch.no_grad()
    def __call__(self, groups: Sequence[Group]) -> None:
        """Fill ``scores[name]`` with the sum over tokens, and the column "dense"."""
        trained, reference = (p.logps(groups, self.budget) for p in (self.trained, self.reference))
        completions = [c for g in groups for c in g.completions]
        for c, trained_T, reference_T in zip(completions, trained, reference, strict=True):
            part = implicit_rewards(trained_T, reference_T, self.spec.beta).numpy()
            row = np.zeros(len(c), dtype=np.float32)
            row[c.mask] = part
            c.tokens["dense"] = row
            c.scores[self.spec.name] = Score(float(part.sum()))


class _Policy:
    """One of the two models, and the renderer of its prompts where its template is not the policy's."""

    def __init__(self, path: str, key: str, policy_tokenizer: Any, device: str) -> None:
        self.lm = load_reference(ModelSpec(path=path, device=device), policy_tokenizer, key)
        tokenizer = load_tokenizer(path)
        other = tokenizer.chat_template not in (None, policy_tokenizer.chat_template)
        self.renderer = Renderer(tokenizer) if other else None

    def logps(self, groups: Sequence[Group], budget: int) -> list[torch.Tensor]:
        """Log-probs of the trained tokens of each completion, in order."""
        seen = [self.renderer.with_own_prompt(g) for g in groups] if self.renderer else groups
        by_completion: dict[int, torch.Tensor] = {}
        for pack in packs(seen, budget, share=self.lm.exact):
            on = pack.to(self.lm.device)
            logp_C = self.lm.logps(self.lm.states(on), on, entropy=False)[0].cpu()
            completions = [c for g in pack.groups for c in g.completions]
            parts = logp_C.split([c.trained for c in completions])
            by_completion |= {id(c): part for c, part in zip(completions, parts, strict=True)}
        return [by_completion[id(c)] for g in groups for c in g.completions]
