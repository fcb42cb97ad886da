"""What picking the best of n answers would give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from trimtab.stats.order_stats import best_of_n, kl_bound
from trimtab.stats.uncertainty import bootstrap_mean
from trimtab.types import Group


def sizes(most: int) -> list[int]:
    """1, 2, 4, ... and ``most`` itself.

    >>> sizes(6)
    [1, 2, 4, 6]
    """
    return sorted({2**i for i in range(most.bit_length()) if 2**i <= most} | {most})


def curve(groups: Sequence[Group], names: Sequence[str], most: int) -> dict[str, Any]:
    """What best-of-n would give for n up to ``most``, by the unbiased estimator.

    Returns:
        For each n as text: "reward" with its 95 % interval over prompts ("low", "high"); each
        part's raw score of the answer that the reward picks, by name; "kl_bound", nats; and
        "prompts", those with n scored answers, over which it is taken.
    """
    found: dict[str, Any] = {}
    for n in sizes(most):
        scored = [[c for c in g.completions if c.reward is not None] for g in groups]
        enough = [mine for mine in scored if len(mine) >= n]
        if not enough:
            break
        rewards = [[cast(float, c.reward) for c in mine] for mine in enough]
        mean, low, high = bootstrap_mean([best_of_n(r, n) for r in rewards])
        at: dict[str, Any] = {"reward": mean, "low": low, "high": high}
        for name in names:
            worth = [[c.scores[name].value for c in mine] for mine in enough]
            each = [
                best_of_n(r, n, cast("list[float]", w))
                for r, w in zip(rewards, worth, strict=True)
                if None not in w
            ]
            if each:
                at[name] = float(np.mean(each))
        found[str(n)] = at | {"kl_bound": kl_bound(n), "prompts": len(enough)}
    return found
