"""Alarm 8: different prompts get one completion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from trimtab.doctor.alarm import Alarm, Symptom, use
from trimtab.doctor.alarms import thresholds as limits
from trimtab.doctor.evidence import Evidence, Rollout, Unchecked
from trimtab.doctor.signals import first_step, gold_rose, mean, opening, reward_rose


def check(e: Evidence) -> Symptom | None:
    """Distinct completions halve, or one opening takes over, while the reward rises and gold does not."""
    early, late = e.early_and_late
    if not reward_rose(early, late):
        return None  # wrecked, not rewarded: alarms 2 and 7
    first, last = _one_per_prompt(early), _one_per_prompt(late)
    n = min(len(first), len(last))
    if n < limits.DISTINCT_PROMPTS:
        raise Unchecked(
            f"{n} different prompts at the start or end have logged completions, "
            f"{limits.DISTINCT_PROMPTS:g} are needed"
        )
    distinct_first, distinct_last = (_distinct(texts, n) / n for texts in (first, last))
    template, count = Counter(opening(x) for x in last).most_common(1)[0]
    share = count / len(last)
    share_first = mean([opening(x) == template for x in first])
    rise = share - share_first
    if not (
        distinct_last < limits.DISTINCT_LEFT * distinct_first
        or (share > limits.OPENING_SHARE and rise > limits.OPENING_RISE)
        or (
            share > limits.PAID_OPENING_SHARE
            and rise > limits.PAID_OPENING_RISE
            and _paid_anywhere(e, template) > limits.PAID_ANYWHERE
        )
    ):
        return None
    rose = gold_rose(e)
    if rose:
        return None  # that completion is the right one
    return Symptom(
        message=(
            f"Distinct completions of {n} different prompts fell from {distinct_first:.0%} to "
            f"{distinct_last:.0%}. {share:.0%} now begin with “{template}”, compared with "
            f"{share_first:.0%} at the start."
        ),
        number=distinct_last / max(distinct_first, limits.NOISE),
        limit=limits.DISTINCT_LEFT,
        tier="T2" if rose is not None else "T1",
        cause="the reward prefers one template",
        other_causes=("the learning rate is too high", "the reward does not read the prompt"),
        remedies=(use("kl-target"), use("inspect-reward")),
        step=first_step(
            e,
            lambda rs: (
                mean([opening(r.completion) == template for r in rs])
                > share_first + limits.OPENING_ONSET
            ),
        ),
        rollouts=[r for r in reversed(late) if opening(r.completion) == template],
    )


def _paid_anywhere(e: Evidence, template: str) -> float:
    """Share of prompts on which the template earns more, of those completed with and without it in a step.

    0 with too few of them.
    """
    by_prompt: dict[tuple[int, str], tuple[list[float], list[float]]] = {}
    for r in e.scored:
        with_it, without = by_prompt.setdefault((r.step, r.prompt), ([], []))
        (with_it if opening(r.completion) == template else without).append(r.reward or 0.0)
    better = [mean(a) > mean(b) for a, b in by_prompt.values() if a and b]
    return mean(better) if len(better) >= limits.PAID_PROMPTS else 0.0


def _one_per_prompt(rollouts: Sequence[Rollout]) -> list[str]:
    """One completion per prompt: a policy that repeats each prompt's own answer has not collapsed."""
    return list({r.prompt: r.completion.strip().lower() for r in rollouts}.values())


def _distinct(texts: list[str], n: int) -> int:
    """Different ones among ``n`` of them, evenly spread."""
    return len({texts[int(i)] for i in np.linspace(0, len(texts) - 1, n)})


ALARM = Alarm(
    number=8,
    name="mode-collapse",
    nature="alignment",
    title="Different prompts get one completion",
    figure="distinct completions left, share of the start",
    remedies=(
        "kl-target",
        "inspect-reward",
        "repetition-penalty",
        "clip-higher",
        "entropy-bonus",
        "decoding",
    ),
    precedence=100,
    check=check,
)
