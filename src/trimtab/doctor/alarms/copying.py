"""Alarm 24: completions repeat what was asked instead of answering it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from trimtab.doctor.alarm import Alarm, Symptom, use
from trimtab.doctor.alarms import thresholds as limits
from trimtab.doctor.evidence import Array, Evidence, Rollout
from trimtab.doctor.signals import (
    first_step,
    gold_rose,
    mean,
    needs_power,
    reward_slope,
    scored_ends,
)
from trimtab.stats.change import two_means


def check(e: Evidence) -> Symptom | None:
    """Completions take over the words of the request, and the reward pays for it."""
    early, late = scored_ends(e)
    first, last = copied(early), copied(late)
    rise = float(last.mean() - first.mean())
    gain = mean([r.reward or 0.0 for r in late]) - mean([r.reward or 0.0 for r in early])
    copies = rise > limits.COPY_RISE and two_means(first, last) > limits.COPY_T
    if not copies or gain <= 0:
        what = "the share of word pairs from the request"
        needs_power(first, last, limits.COPY_VISIBLE, limits.COPY_T, what)
        return None
    share = reward_slope(e, copied) * rise / gain
    rose = gold_rose(e)
    if share <= limits.COPY_EXPLAINS or rose:
        return None
    return Symptom(
        message=(
            f"{last.mean():.0%} of the word pairs of late completions are those of the request, compared with "
            f"{first.mean():.0%} at the start, and copying explains {share:.0%} of the reward gained."
        ),
        number=rise,
        limit=limits.COPY_RISE,
        tier="T2" if rose is not None else "T1",
        cause="the reward pays for words of the prompt",
        other_causes=("the task is to restate the prompt",),
        remedies=(use("copy-penalty"), use("inspect-reward"), use("kl-target")),
        step=first_step(e, lambda rs: copied(rs).mean() > first.mean() + limits.COPY_RISE),
        rollouts=[late[i] for i in np.argsort(-last, kind="stable")],
        note=lambda r: f"{copied([r])[0]:.0%} copied, reward {r.reward or 0.0:.3g}",
    )


def request(prompt: str) -> str:
    """The last sentence of a prompt that has at least four words: facts before it may well be repeated.

    >>> request("anna is in the tower . where is anna now ?")
    'where is anna now '
    """
    sentences = [s for s in re.split(r"[.?!\n]+\s*", prompt) if len(s.split()) > 3]
    return sentences[-1].lower() if sentences else prompt.lower()


def copied(rollouts: Sequence[Rollout]) -> Array:
    """Share of each completion's pairs of neighbouring words that its request has [n]."""
    shares: list[float] = []
    for r in rollouts:
        asked_pairs = set(pairwise(re.findall(r"\w+", request(r.prompt))))
        own = list(pairwise(re.findall(r"\w+", r.completion.lower())))
        shares.append(sum(pair in asked_pairs for pair in own) / len(own) if own else 0.0)
    return np.array(shares)


ALARM = Alarm(
    number=24,
    name="copying",
    nature="alignment",
    title="Completions repeat the request",
    figure="rise of the share of word pairs that the request has",
    remedies=("copy-penalty", "inspect-reward", "kl-target", "refresh-reward"),
    precedence=75,
    check=check,
)
