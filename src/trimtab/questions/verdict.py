"""Verdicts on claims from one effect per seed. Pure: numbers in, verdicts out.

An effect is counted in the claimed direction, so a claim says "the effect is above 0", and one that is
worth claiming is at least ``smallest``, the smallest effect of interest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from scipy.stats import false_discovery_control
from scipy.stats import t as student

from trimtab.stats.uncertainty import Estimate

Outcome = Literal["holds", "fails", "undecided"]
"""Holds here, does not hold here, or not enough seeds to say."""
Reason = Literal["", "reversed", "smaller", "none", "multiplicity"]
"""Why a claim fails (the effect is reversed, smaller than claimed, or nothing that could be told from 0),
or "multiplicity" where a decided claim became undecided because many claims were tested."""
Combined = Literal["holds", "fails", "undecided", "depends"]

LOOKS = (5, 10)
"""Seeds at which a claim is looked at; the second time only if it was undecided the first."""
CONFIDENCE = 0.975
"""Of the interval of each look: both together err in at most 5 % of claims."""
PROVISIONAL_CONFIDENCE = 0.95
"""Of the interval over prompts of a single seed."""
FALSE_DISCOVERY_RATE = 0.05
MOST_SEEDS = 1000
"""Where the search for the number of deciding seeds ends."""


class Decision(NamedTuple):
    """What an interval says of a claim."""

    outcome: Outcome
    reason: Reason = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on one claim under one condition."""

    outcome: Outcome
    reason: Reason
    effect: Estimate
    """Mean effect in the claimed direction, with the interval that decided."""
    seeds: int
    """Seeds that the interval is from."""
    provisional: bool
    """Whether there were fewer seeds than the first look needs."""
    seeds_needed: int | None = None
    """Seeds that would decide an undecided claim if mean and spread stay as they are."""
    p_holds: float = math.nan
    """One-sided p-value of "the effect is 0 or less", adjusted for two looks; NaN if provisional."""
    p_fails: float = math.nan
    """The same of "the effect is the smallest of interest or more"."""


def t_interval(effects: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean of effects, one per seed, with Student's t interval.

    Raises:
        ValueError: fewer than two effects.

    >>> mean, low, high = t_interval([1.0, 2.0, 3.0], 0.95)
    >>> round(mean, 4), round(low, 4), round(high, 4)
    (2.0, -0.4841, 4.4841)
    """
    n = len(effects)
    if n < 2:
        raise ValueError("an interval over seeds needs two seeds or more")
    mean = float(np.mean(effects))
    half = float(student.ppf(0.5 + confidence / 2, n - 1)) * _error(effects)
    return Estimate(mean, mean - half, mean + half)


def _error(effects: Sequence[float]) -> float:
    """Standard error of the mean."""
    return float(np.std(effects, ddof=1)) / math.sqrt(len(effects))


def decide(low: float, high: float, smallest: float) -> Decision:
    """The decision from an interval of the effect in the claimed direction.

    >>> decide(0.01, 0.09, 0.05).outcome, decide(0.01, 0.04, 0.05), decide(-0.1, 0.1, 0.05).outcome
    ('holds', Decision(outcome='fails', reason='smaller'), 'undecided')
    """
    if high < smallest:
        return Decision("fails", "reversed" if high < 0 else "smaller" if low > 0 else "none")
    return Decision("holds" if low > 0 else "undecided")


def p_values(effects: Sequence[float], smallest: float) -> tuple[float, float]:
    """One-sided p-values of Student's t test: of effect <= 0, and of effect >= ``smallest``."""
    mean, error, degrees = float(np.mean(effects)), _error(effects), len(effects) - 1
    if error == 0:
        return float(mean <= 0), float(mean >= smallest)
    holds = float(student.sf(mean / error, degrees))
    return holds, float(student.cdf((mean - smallest) / error, degrees))


def seeds_needed(effects: Sequence[float], smallest: float) -> int | None:
    """Seeds that would decide, with the mean and the spread of ``effects``; None above 1,000."""
    mean, spread = float(np.mean(effects)), float(np.std(effects, ddof=1))
    n = np.arange(len(effects) + 1, MOST_SEEDS + 1)
    half = student.ppf(0.5 + CONFIDENCE / 2, n - 1) * spread / np.sqrt(n)
    decided = (mean + half < smallest) | (mean - half > 0)
    return int(n[np.argmax(decided)]) if decided.any() else None


def from_seeds(effects: Sequence[float], smallest: float) -> Verdict:
    """The verdict on effects of two seeds or more, in the order of the registered seeds.

    The first five are one look. Ten are a second one, if the first did not decide. With fewer than five
    the verdict is provisional.

    Raises:
        ValueError: there are fewer than two effects or more than ten, or one is not finite.
    """
    if len(effects) > LOOKS[-1]:
        raise ValueError(f"{len(effects)} seeds: more than the {LOOKS[-1]} that two looks allow")
    if not np.isfinite(effects).all():
        raise ValueError(f"an effect is not finite: {list(effects)}")
    provisional = len(effects) < LOOKS[0]
    looks = [len(effects)] if provisional else [n for n in LOOKS if n <= len(effects)]
    p_of_looks: list[tuple[float, float]] = []
    verdict: Verdict | None = None
    for size in looks:
        seen = effects[:size]
        effect = t_interval(seen)
        outcome, reason = decide(effect.low, effect.high, smallest)
        p_of_looks.append(p_values(seen, smallest))
        holds, fails = (min(1.0, len(LOOKS) * min(p)) for p in zip(*p_of_looks, strict=True))
        verdict = Verdict(
            outcome,
            reason,
            effect,
            seeds=size,
            provisional=provisional,
            seeds_needed=seeds_needed(seen, smallest) if outcome == "undecided" else None,
            p_holds=math.nan if provisional else holds,
            p_fails=math.nan if provisional else fails,
        )
        if outcome != "undecided":
            break
    assert verdict is not None
    return verdict


def from_prompts(effect: Estimate, smallest: float) -> Verdict:
    """The provisional verdict on a single seed, from the bootstrap interval of its effect over prompts.

    Such an interval says nothing of another seed. Where its ends are NaN nothing is decided.
    """
    outcome, reason = decide(effect.low, effect.high, smallest)
    return Verdict(outcome, reason, effect, seeds=1, provisional=True)


def control_false_discoveries(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Benjamini-Hochberg at 5 % over all claims, for "holds" and for "fails" each.

    A decided claim whose adjusted p-value is larger becomes undecided. Provisional verdicts pass as
    they are: they are no tests.
    """
    adjusted = list(verdicts)
    for outcome in ("holds", "fails"):
        tested = [i for i, v in enumerate(verdicts) if not math.isnan(getattr(v, f"p_{outcome}"))]
        if not tested:
            continue
        p = false_discovery_control([getattr(verdicts[i], f"p_{outcome}") for i in tested])
        for i, value in zip(tested, p, strict=True):
            if verdicts[i].outcome == outcome and value > FALSE_DISCOVERY_RATE:
                adjusted[i] = replace(verdicts[i], outcome="undecided", reason="multiplicity")
    return adjusted


def over_conditions(outcomes: Iterable[Outcome]) -> Combined:
    """The verdict on a claim from those under each of its conditions.

    >>> over_conditions(["holds", "fails"]), over_conditions(["holds", "undecided"])
    ('depends', 'undecided')
    """
    kinds = set(outcomes)
    if {"holds", "fails"} <= kinds:
        return "depends"
    return kinds.pop() if len(kinds) == 1 else "undecided"
