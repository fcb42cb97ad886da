"""Groups of texts, and lists of rewards."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.support.folders import tokenizer
from trimtab.rewards.part_config import RewardSpec
from trimtab.rewards.weighted_sum import Rewards
from trimtab.types import Completion, Group


def group_of(*texts: str, **extra: Any) -> Group:
    """A prompt "q" with these completions; other arguments are the row's columns."""
    done = [Completion(np.array([3, 2]), np.array([True, True]), t) for t in texts]
    return Group("7", np.array([1]), done, "q", extra)


def rewards(*specs: dict[str, Any]) -> Rewards:
    """The rewards of a list of configurations."""
    parsed = [RewardSpec.model_validate(s) for s in specs]
    return Rewards(parsed, tokenizer(), 512, "cpu")


def function(of: str, **more: Any) -> dict[str, Any]:
    """A reward "r" with a function of ``reward_functions``."""
    return {"name": "r", "function": f"tests.support.reward_functions:{of}", **more}
