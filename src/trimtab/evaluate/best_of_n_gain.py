"""Expected gain of best-of-n sampling."""

from collections.abc import Sequence
from typing import cast

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


def curve(groups: Sequence[Group], names: Sequence[str], most: int) -> dict[str, dict[str, float]]:
    """Expected scores of best-of-n for n up to ``most``, by the unbiased estimator.

    Args:
        names: Rewards whose raw score of the best completion is reported as well.

    Returns:
        For each n as text: "reward" with its 95 % interval over prompts ("low", "high"), each of
        ``names``, "kl_bound" in nats, and "prompts": those with n scored completions.
    """
    points: dict[str, dict[str, float]] = {}
    scored = [[c for c in g.completions if c.reward is not None] for g in groups]
    for n in sizes(most):
        enough = [completions for completions in scored if len(completions) >= n]
        if not enough:
            break
        rewards = [[cast(float, c.reward) for c in completions] for completions in enough]
        mean, low, high = bootstrap_mean([best_of_n(r, n) for r in rewards])
        point = {"reward": mean, "low": low, "high": high}
        for name in names:
            values = [[c.scores[name].value for c in completions] for completions in enough]
            best = [
                best_of_n(r, n, cast("list[float]", v))
                for r, v in zip(rewards, values, strict=True)
                if None not in v
            ]
            if best:
                point[name] = float(np.mean(best))
        points[str(n)] = point | {"kl_bound": kl_bound(n), "prompts": len(enough)}
    return points
