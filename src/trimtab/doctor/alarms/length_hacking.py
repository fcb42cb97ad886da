"""Alarm 4: the reward is bought with length."""

from __future__ import annotations

import math

import numpy as np

from trimtab.doctor.alarm import Alarm, Symptom, use
from trimtab.doctor.alarms import thresholds as limits
from trimtab.doctor.evidence import MIN_ROLLOUTS, Array, Evidence, Rollout, Unchecked
from trimtab.doctor.signals import (
    common_pairs,
    first_step,
    gold_rose,
    lengths,
    mean,
    own_pairs,
    scored,
    words,
)
from trimtab.stats.change import slope, two_means


def check(e: Evidence) -> Symptom | None:
    """Completions grow, length explains the gain, and what was added says nothing new."""
    early, late = (scored(part) for part in e.early_and_late)
    if min(len(early), len(late)) < MIN_ROLLOUTS:
        raise Unchecked(f"fewer than {MIN_ROLLOUTS} scored rollouts at the start or end")
    z = two_means(lengths(early), lengths(late))
    before = float(lengths(early).mean())
    growth = float(lengths(late).mean()) - before
    gain = mean([r.reward or 0.0 for r in late]) - mean([r.reward or 0.0 for r in early])
    if z <= limits.LENGTH_Z or growth < limits.LENGTH_GROWTH * before or gain <= 0:
        return None
    share = _slope_on_length(e) * growth / gain
    if share <= limits.LENGTH_EXPLAINS:
        return None
    common = common_pairs([*early, *late])
    new_pairs = mean([own_pairs(r, common) for r in late]) - mean(
        [own_pairs(r, common) for r in early]
    )
    new_words = mean([len(words(r)) for r in late]) - mean([len(words(r)) for r in early])
    if new_pairs > limits.LENGTH_NEW * new_words:
        return None  # longer because it says more
    rose = gold_rose(e)
    if rose:
        return None
    limit = before + 3 * float(lengths(early).std()) / math.sqrt(max(1, len(early)))
    return Symptom(
        message=(
            f"Completions grew from {before:.1f} to {before + growth:.1f} tokens (z = {z:.1f}), and length "
            f"explains {share:.0%} of the reward gained. Of {new_words:.1f} more words per completion only "
            f"{max(new_pairs, 0.0):.1f} bring a new word pair; the rest is padding."
        ),
        number=share,
        limit=limits.LENGTH_EXPLAINS,
        tier="T2" if rose is not None else "T1",
        cause="the reward pays for length",
        other_causes=("annotators prefer long completions", "completions do not end (alarm 9)"),
        remedies=(use("residual-length"), use("length-penalty", target=max(8, round(before)))),
        step=first_step(e, lambda rs: float(lengths(rs).mean()) > limit),
        rollouts=sorted(late, key=lambda r: -r.tokens),
        note=_note,
    )


def _note(r: Rollout) -> str:
    reward = "" if r.reward is None else f", reward {r.reward:.3g}"
    return f"{r.tokens} tokens{reward}"


def _slope_on_length(e: Evidence) -> float:
    """Reward per token among completions of one prompt in one step; within steps if each prompt has one.

    A prompt that asks for a long completion is no padding, so prompts are not compared if possible.
    """
    by_prompt: dict[tuple[int, str], list[Rollout]] = {}
    for r in e.scored:
        by_prompt.setdefault((r.step, r.prompt), []).append(r)
    alone = mean([len(rs) for rs in by_prompt.values()]) < 2
    xs: list[Array] = []
    ys: list[Array] = []
    for rs in map(scored, e.by_step().values()) if alone else by_prompt.values():
        if len(rs) > (2 if alone else 1):
            x, y = lengths(rs), np.array([r.reward for r in rs], np.float64)
            xs.append(x - x.mean())
            ys.append(y - y.mean())
    return slope(np.concatenate(xs), np.concatenate(ys))[0] if xs else 0.0


ALARM = Alarm(
    number=4,
    name="length-hacking",
    nature="alignment",
    title="Reward is bought with length",
    figure="share of the reward gained that length explains",
    remedies=("residual-length", "length-penalty", "refresh-reward"),
    precedence=90,
    check=check,
)
