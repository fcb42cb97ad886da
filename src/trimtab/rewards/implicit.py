"""DPO's implicit token reward: the log-ratio of a preference-trained policy to its reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field

from trimtab.config import Config
from trimtab.data.pack import Pack, packs
from trimtab.data.render import Renderer
from trimtab.models.load import LM, ModelSpec
from trimtab.models.load_frozen import load_reference
from trimtab.objectives.advantage import implicit_rewards
from trimtab.types import Group, Score


class ImplicitSpec(Config):
    """r_t = beta (log pi_dpo - log pi_ref) on every token (2404.12358)."""

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

    Args:
        spec: The two models.
        renderer: The policy's; both models must have its vocabulary.
        token_budget: Tokens per forward pass.
        device: The device of the models.

    Raises:
        ModelError: a model cannot be loaded, or has another vocabulary.
    """

    def __init__(
        self, spec: ImplicitSpec, renderer: Renderer, token_budget: int, device: str = "auto"
    ) -> None:
        self.spec = spec
        self.budget = token_budget
        self.trained, self.reference = (
            load_reference(ModelSpec(path=path, device=device), renderer.tokenizer, key)
            for key, path in (
                ("implicit.model", spec.model),
                ("implicit.reference", spec.reference),
            )
        )

    @torch.no_grad()
    def __call__(self, groups: Sequence[Group]) -> None:
        """Fill ``scores[name]`` with the sum over tokens, and the column "dense"."""
        share = self.trained.exact and self.reference.exact
        for pack in packs(groups, self.budget, share=share):
            pair = [self._logps(lm, pack) for lm in (self.trained, self.reference)]
            reward_C = implicit_rewards(pair[0], pair[1], self.spec.beta).numpy()
            done = [c for g in pack.groups for c in g.completions]
            at = np.cumsum([c.trained for c in done])[:-1]
            for c, part in zip(done, np.split(reward_C, at), strict=True):
                row = np.zeros(len(c), dtype=np.float32)
                row[c.mask] = part
                c.tokens["dense"] = row
                c.scores[self.spec.name] = Score(float(part.sum()))

    @staticmethod
    def _logps(lm: LM, pack: Pack) -> torch.Tensor:
        on = pack.to(lm.device)
        return lm.logps(lm.states(on), on, entropy=False)[0].cpu()
