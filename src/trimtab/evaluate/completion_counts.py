"""Counts over the completions of a prompt: pass@k, different ones, different good ones; means by column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from trimtab.stats.order_stats import pass_at_k
from trimtab.stats.uncertainty import Estimate, bootstrap_mean
from trimtab.types import Completion, Group


def pass_at(groups: Sequence[Group], reward: str, k: int, threshold: float) -> Estimate:
    """Unbiased pass@k over the prompts with at least k scored completions."""
    scored = [
        [v for x in g.completions if (v := x.scores[reward].value) is not None] for g in groups
    ]
    return bootstrap_mean(
        [pass_at_k(len(v), sum(s >= threshold for s in v), k) for v in scored if len(v) >= k]
    )


def passes(completion: Completion, reward: str, threshold: float) -> bool:
    """Whether a completion has a score of at least ``threshold``."""
    value = completion.scores[reward].value
    return value is not None and value >= threshold


def expected_different(texts: Sequence[str], n: int, k: int) -> float:
    """Expected number of different ``texts`` among k of n completions drawn without replacement.

    The sum over the different texts of the probability that at least one of their copies is drawn,
    so the estimate from n > k completions is unbiased for k.

    Args:
        texts: Those of the n completions that count; equal up to case and white space is equal.

    Raises:
        DataError: n < k.

    >>> round(expected_different(["a", "A", "b"], 3, 2), 6)
    1.666667
    """
    counts = Counter(" ".join(text.lower().split()) for text in texts)
    return sum(pass_at_k(n, count, k) for count in counts.values())


def different_at(
    groups: Sequence[Group], k: int, good: Callable[[Completion], bool] = lambda _: True
) -> Estimate:
    """Mean over prompts of the expected number of different good completions among k."""
    return bootstrap_mean(
        [
            expected_different([x.text for x in g.completions if good(x)], len(g.completions), k)
            for g in groups
        ]
    )


def scores_by(
    groups: Sequence[Group], column: str, rewards: Sequence[str]
) -> dict[str, dict[str, Estimate]]:
    """Mean of each reward by the value of a column of the prompts; the intervals are over prompts.

    Prompts without the column are counted under "". A reward without a score has no entry.
    """
    by_value: dict[str, list[Group]] = {}
    for g in groups:
        by_value.setdefault(str(g.extra.get(column, "")), []).append(g)
    result: dict[str, dict[str, Estimate]] = {}
    for value, part in sorted(by_value.items()):
        result[value] = {}
        for reward in rewards:
            scored = [
                (i, s)
                for i, g in enumerate(part)
                for x in g.completions
                if (s := x.scores[reward].value) is not None
            ]
            if scored:
                result[value][reward] = bootstrap_mean(
                    [s for _, s in scored], [i for i, _ in scored]
                )
    return result
