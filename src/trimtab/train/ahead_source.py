"""What an online stage gives to the collector that samples ahead of training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from trimtab import ranks
from trimtab.objectives.policy import PolicyMethod
from trimtab.rollout.ahead import Ahead
from trimtab.train.rollouts import RolloutStage
from trimtab.train.trainer import batch_indices
from trimtab.types import Group


class StageSource:
    """Groups of a stage by number: number ``batch_size * i + j`` is prompt j of iteration i, with the
    random streams that it has without a collector.

    Args:
        batch_size: Prompts per iteration.
        n: Completions per prompt.
    """

    def __init__(self, stage: RolloutStage[Any], batch_size: int, n: int) -> None:
        self.stage, self.batch_size, self.n = stage, batch_size, n
        self._picked = lru_cache(maxsize=64)(self._pick)

    def _pick(self, iteration: int) -> list[int]:
        seed = self.stage.config.loop.seed
        return batch_indices(len(self.stage.prompts), self.batch_size, iteration, seed)

    def prompt(self, number: int) -> Group:
        """The prompt of a group."""
        iteration, index = divmod(number, self.batch_size)
        return self.stage.prompts[self._picked(iteration)[index]]

    def collect(self, numbers: Sequence[int], prompts: Sequence[Group]) -> list[Group]:
        """Completions of consecutive groups of one iteration."""
        iteration, first = divmod(numbers[0], self.batch_size)
        key = (self.stage.config.loop.seed, iteration)
        return self.stage.rollouts(prompts, self.n, key, first)

    def score(self, groups: Sequence[Group]) -> None:
        """Fill in the rewards."""
        self.stage.score(groups)

    def sync(self) -> None:
        """Give the engine the current weights."""
        self.stage.sync()


def collect_ahead(stage: RolloutStage[Any], batch_size: int, n: int) -> Ahead | None:
    """The collector of a stage with ``rollout.max_staleness``; None where sampling and training take turns,
    and on ranks other than 0.

    Args:
        batch_size: Prompts per iteration.
        n: Completions per prompt.
    """
    spec = stage.config.rollout
    if not spec.max_staleness or not ranks.current().is_main:
        return None
    return Ahead(spec, batch_size, lambda: stage.steps, StageSource(stage, batch_size, n))


def with_importance_weights(method: PolicyMethod) -> PolicyMethod:
    """``method`` with truncated importance weights, unless it corrects for the sampler already."""
    mismatch = method.mismatch
    if mismatch.correction != "none" or mismatch.anchor == "sampler":
        return method
    mismatch = mismatch.model_copy(update={"correction": "token"})
    return method.model_copy(update={"mismatch": mismatch})
