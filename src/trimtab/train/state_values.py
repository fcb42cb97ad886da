"""Monte-Carlo state values in place of a critic (VinePPO, 2410.01679)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from pydantic import Field

from trimtab.config import Config
from trimtab.data.render import Renderer
from trimtab.data.steps import Steps
from trimtab.objectives.process_reward import state_advantages
from trimtab.rollout.engine import Engine
from trimtab.rollout.monte_carlo import monte_carlo_values
from trimtab.sample.sampler import SamplingConfig
from trimtab.types import Group

_STREAM = 1_000_003
"""Separates these random streams from those of the rollouts."""


class MonteCarloSpec(Config):
    """How state values are estimated."""

    k: int = Field(default=9, gt=0)
    """Continuations from the end of each reasoning step."""
    separator: str = "\n"
    """Text that ends a reasoning step."""


class MonteCarloValues:
    """Computes the advantage of every reasoning step: V(after the step) - V(before it).

    Args:
        spec: Number of continuations, and the separator of steps.
        seed: First part of every random stream's key.

    Raises:
        ConfigError: the separator has no token.
    """

    def __init__(
        self,
        spec: MonteCarloSpec,
        engine: Engine,
        renderer: Renderer,
        rewards: Callable[[Sequence[Group]], None],
        sampling: SamplingConfig,
        seed: int,
    ) -> None:
        self.spec = spec
        self.engine = engine
        self.renderer = renderer
        self.rewards = rewards
        self.sampling = sampling
        self.seed = seed
        self.steps = Steps(renderer, spec.separator)

    def __call__(self, groups: Sequence[Group], index: int) -> dict[str, float]:
        """Put a reasoning step's advantage on its tokens, as the column "state_advantage".

        It is 0 where the state before or after the step has no value.

        Returns:
            The mean value of the prompts and the number of scored continuations.
        """
        state_values = monte_carlo_values(
            self.engine,
            self.renderer,
            groups,
            self.rewards,
            self.sampling,
            self.steps.ends,
            self.spec.k,
            (self.seed, index, _STREAM),
        )
        starts: list[float] = []
        num_continuations = 0
        for group, values in zip(groups, state_values, strict=True):
            for c, v in zip(group.completions, values, strict=True):
                gains = state_advantages(
                    torch.from_numpy(v.values), torch.from_numpy(v.ends), len(c)
                )
                c.tokens["state_advantage"] = torch.nan_to_num(gains, nan=0.0).numpy()
                starts.append(float(v.values[0]))
                num_continuations += sum(len(r) for r in v.returns[1:])
            num_continuations += len(values[0].returns[0]) if values else 0
        return {
            "value/mean": float(np.nanmean(starts)) if starts else 0.0,
            "value/continuations": float(num_continuations),
        }
