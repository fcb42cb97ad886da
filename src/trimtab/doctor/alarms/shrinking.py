"""Alarm 19: the reward is bought with brevity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trimtab.doctor.alarm import Alarm, Symptom, use
from trimtab.doctor.alarms import thresholds as limits
from trimtab.doctor.evidence import Array, Evidence, Rollout
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
)
from trimtab.stats.change import two_means


def check(e: Evidence) -> Symptom | None:
    """Completions shrink, brevity explains the gain, and their content is lost with the words."""
    early, late = scored_ends(e)
    before, after = float(lengths(early).mean()), float(lengths(late).mean())
    gain = mean([r.reward or 0.0 for r in late]) - mean([r.reward or 0.0 for r in early])
    shrank = two_means(lengths(late), lengths(early)) > limits.LENGTH_Z
    if not shrank or after > limits.SHORT_LEFT * before or gain <= 0:
        visible = (1 - limits.SHORT_LEFT) * before
        needs_power(lengths(early), lengths(late), visible, limits.LENGTH_Z, "length in tokens")
        return None
    change = float(log_lengths(late).mean() - log_lengths(early).mean())
    share = reward_slope(e, log_lengths) * change / gain
    if share <= limits.LENGTH_EXPLAINS:
        return None
    common = common_pairs([*early, *late])
    content = [mean([own_pairs(r, common) for r in part]) for part in (early, late)]
    if content[1] > limits.SHORT_CONTENT * content[0]:
        return None  # shorter, and says as much
    rose = gold_rose(e)
    if rose:
        return None
    return Symptom(
        message=(
            f"Completions shrank from {before:.1f} to {after:.1f} tokens, and brevity explains {share:.0%} of "
            f"the reward gained. Word pairs of their own fell from {content[0]:.1f} to {content[1]:.1f} per "
            "completion: content went with the words."
        ),
        number=share,
        limit=limits.LENGTH_EXPLAINS,
        tier="T2" if rose is not None else "T1",
        cause="the reward pays for brevity",
        other_causes=("a penalty on length is too strong", "the reward does not read the content"),
        remedies=(use("inspect-reward"), use("residual-length"), use("kl-target")),
        step=first_step(e, lambda rs: float(lengths(rs).mean()) < limits.SHORT_LEFT * before),
        rollouts=sorted(late, key=lambda r: r.tokens),
        note=lambda r: f"{r.tokens} tokens, reward {r.reward or 0.0:.3g}",
    )


def log_lengths(rollouts: Sequence[Rollout]) -> Array:
    """Log of the tokens of each completion [n], at least one token."""
    return np.log(np.maximum(1.0, lengths(rollouts)))


ALARM = Alarm(
    number=19,
    name="shrinking",
    nature="alignment",
    title="Reward is bought with brevity",
    figure="share of the reward gained that brevity explains",
    remedies=("inspect-reward", "residual-length", "kl-target", "refresh-reward"),
    precedence=91,
    check=check,
)
