"""Alarm 4: the reward is bought with length."""

from __future__ import annotations

import math

from trimtab.doctor.alarm import Alarm, Symptom, use
from trimtab.doctor.alarms import thresholds as limits
from trimtab.doctor.evidence import Evidence, Rollout
from trimtab.doctor.signals import (
    common_pairs,
    first_step,
    gold_rose,
    lengths,
    mean,
    needs_power,
    own_pairs,
    reward_slope,
    scored_ends,
    words,
)
from trimtab.stats.change import two_means


def check(e: Evidence) -> Symptom | None:
    """Completions grow, length explains the gain, and what was added says nothing new."""
    early, late = scored_ends(e)
    z = two_means(lengths(early), lengths(late))
    before = float(lengths(early).mean())
    growth = float(lengths(late).mean()) - before
    gain = mean([r.reward or 0.0 for r in late]) - mean([r.reward or 0.0 for r in early])
    if z <= limits.LENGTH_Z or growth < limits.LENGTH_GROWTH * before or gain <= 0:
        visible = limits.LENGTH_VISIBLE * before
        needs_power(lengths(early), lengths(late), visible, limits.LENGTH_Z, "length in tokens")
        return None
    share = reward_slope(e, lengths) * growth / gain
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
