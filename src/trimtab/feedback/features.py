"""Features of a judge's votes, which calibration fits to human labels."""

import math
from collections.abc import Mapping, Sequence

import regex

from trimtab.feedback.judgement import Item
from trimtab.feedback.votes import Vote

_CLIP = 6.0
"""Largest log-odds that a probability of the judge counts for."""
PATTERN_S = 1.0
"""Seconds per search of a pattern in a completion: some patterns take exponential time."""


def vote_features(
    cast: Sequence[Vote],
    items: Mapping[str, Item],
    covariates: Sequence[str],
    patterns: Mapping[str, str],
) -> list[tuple[float, ...]]:
    """Features of a judge's votes [N][F]: the judge's log-odds, then one per covariate. All change
    sign when the two completions are swapped.

    Args:
        covariates: Of "length" (words) and "position" (which was shown first).
        patterns: Regular expressions by name: whether a completion matches is a covariate.

    Raises:
        TimeoutError: the search of a pattern takes longer than ``PATTERN_S``.
    """
    rows: list[tuple[float, ...]] = []
    for vote in cast:
        item, a, b = vote.pair
        judgement = vote.judgement
        first, second = (items[item].completions[k] for k in (a, b))
        # A verdict without a probability is one unit: the slope that is fitted says what it is worth.
        row = [_logit(vote.prob) if judgement.prob is not None else 2 * vote.prob - 1]
        if "length" in covariates:
            row.append(float(len(first.split()) - len(second.split())))
        if "position" in covariates:
            position = 1.0 if vote.a_shown_first else -1.0
            row.append(0.0 if judgement.order is None else position)
        row += [float(is_found(p, first)) - is_found(p, second) for p in patterns.values()]
        rows.append(tuple(row))
    return rows


def is_found(pattern: str, text: str, flags: int = 0) -> bool:
    """Whether a regular expression matches somewhere in ``text``.

    Raises:
        TimeoutError: the search takes longer than ``PATTERN_S``.
    """
    return regex.search(pattern, text, flags, timeout=PATTERN_S, concurrent=True) is not None


def _logit(p: float) -> float:
    p = min(max(p, 1e-9), 1 - 1e-9)
    return max(-_CLIP, min(_CLIP, math.log(p / (1 - p))))
