"""Alarm 16: completions repeat themselves, or are no language."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from trimtab.doctor.alarm import Alarm, Symptom, use
from trimtab.doctor.alarms import thresholds as limits
from trimtab.doctor.evidence import Array, Evidence, Rollout
from trimtab.doctor.signals import (
    first_step,
    gold_rose,
    lengths,
    mean,
    needs_power,
    repetition,
    reward_rose,
    scored,
    words,
)
from trimtab.stats.change import two_means


def check(e: Evidence) -> Symptom | None:
    """Repetition rose, letters gave way to signs, or the reference finds completions impossible and one
    word fills them."""
    early, late = e.early_and_late
    if not reward_rose(early, late):
        return None
    if (symptom := _signs(e, early, late)) is not None:
        return symptom
    repeats_early = np.array([repetition(r.completion) for r in early])
    repeats_late = np.array([repetition(r.completion) for r in late])
    share_early = float((repeats_early > limits.REPEATS).mean())
    share_late = float((repeats_late > limits.REPEATS).mean())
    odd_early, odd_late, odd_limit = _outliers(early, late)
    repeats = (
        share_late > limits.REPEATS_SHARE
        and share_late - share_early > limits.REPEATS_RISE
        and two_means(repeats_early, repeats_late) > limits.REPEATS_T
    )
    counts = Counter(w for r in late for w in words(r))
    word, count = counts.most_common(1)[0] if counts else ("", 0)
    odd = (
        odd_late > limits.ODD_SHARE
        and odd_late - odd_early > limits.ODD_RISE
        and count / max(1, counts.total()) > limits.ONE_WORD
    )
    if not repeats and not odd:
        if share_late <= limits.REPEATS_SHARE:
            first, last = (
                (x > limits.REPEATS).astype(float) for x in (repeats_early, repeats_late)
            )
            visible, z = limits.REPEATS_VISIBLE, limits.REPEATS_T
            needs_power(first, last, visible, z, "the share that repeats itself")
        return None

    def began(rollouts: list[Rollout]) -> bool:
        if repeats:
            rate = mean([repetition(r.completion) > limits.REPEATS for r in rollouts])
            return rate > share_early + limits.REPEATS_RISE
        return mean([(r.nll or 0.0) > odd_limit for r in rollouts]) > odd_early + limits.ODD_RISE

    outliers = f"; {odd_late:.0%} are outliers under the reference" if odd_late else ""
    padding = _grew(early, late) and not _pays_word(e, word)
    return Symptom(
        message=(
            f"In {share_late:.0%} of late completions more than {limits.REPEATS:.0%} of the three-word sequences "
            f"are repeats ({share_early:.0%} at the start){outliers}. The most common word is “{word}”."
        ),
        number=share_late if repeats else odd_late,
        limit=limits.REPEATS_SHARE if repeats else limits.ODD_SHARE,
        tier="T1",
        cause="the reward pays for a word or pattern",
        other_causes=("temperature or learning rate too high",),
        remedies=(use("repetition-penalty"), use("kl-target"), use("inspect-reward")),
        step=first_step(e, began),
        rollouts=sorted(late, key=lambda r: -repetition(r.completion)),
        # Padding repeats itself too; then length is what the reward pays for.
        severity="warning" if padding else "critical",
        note=_note,
    )


def letters(text: str) -> float:
    """Share of the characters that are letters or spaces; 1 for an empty text.

    >>> letters("1, 2, 3,"), letters("two cats")
    (0.25, 1.0)
    """
    return sum(c.isalpha() or c.isspace() for c in text) / len(text) if text else 1.0


def _signs(e: Evidence, early: Sequence[Rollout], late: Sequence[Rollout]) -> Symptom | None:
    """Completions that were words become digits and signs."""
    first, last = (
        np.array([letters(r.completion) < limits.LETTERS for r in rs], np.float64)
        for rs in (early, late)
    )
    start, end = float(first.mean()), float(last.mean())
    if (
        end <= limits.REPEATS_SHARE
        or end - start <= limits.REPEATS_RISE
        or two_means(first, last) <= limits.REPEATS_T
        or gold_rose(e)
    ):
        return None
    return Symptom(
        message=(
            f"{end:.0%} of late completions consist mostly of digits and signs instead of letters, compared with "
            f"{start:.0%} at the start."
        ),
        number=end,
        limit=limits.REPEATS_SHARE,
        tier="T1",
        cause="the reward pays for a character or pattern",
        other_causes=("temperature or learning rate too high",),
        remedies=(use("inspect-reward"), use("kl-target")),
        step=first_step(
            e,
            lambda rs: (
                mean([letters(r.completion) < limits.LETTERS for r in rs])
                > start + limits.REPEATS_RISE
            ),
        ),
        rollouts=sorted(late, key=lambda r: letters(r.completion)),
        note=_note,
    )


def _note(r: Rollout) -> str:
    reward = "" if r.reward is None else f", reward {r.reward:.3g}"
    return f"repeats {repetition(r.completion):.0%}{reward}"


def _grew(early: Sequence[Rollout], late: Sequence[Rollout]) -> bool:
    return float(lengths(late).mean()) > limits.FILLING_GROWTH * float(lengths(early).mean())


def _pays_word(e: Evidence, word: str) -> bool:
    """Whether within a step the reward depends on the count of a word more than on length."""
    parts: list[Array] = []
    for rollouts in map(scored, e.by_step().values()):
        if len(rollouts) > 3:
            x = np.array([[words(r).count(word), r.tokens, r.reward] for r in rollouts], np.float64)
            parts.append(x - x.mean(0))
    x = np.concatenate(parts) if parts else np.zeros((0, 3))
    spread = x[:, :2].std(0) if len(x) else np.zeros(2)
    if spread.min() < limits.NOISE:
        return False
    by_word, by_length = np.linalg.lstsq(x[:, :2] / spread, x[:, 2])[0]
    return bool(by_word > by_length)


def _outliers(early: Sequence[Rollout], late: Sequence[Rollout]) -> tuple[float, float, float]:
    """Shares of early and late rollouts above a limit of reference NLL, and that limit."""
    first = np.array([r.nll for r in early if r.nll is not None])
    last = np.array([r.nll for r in late if r.nll is not None])
    if min(len(first), len(last)) < limits.ODD_MIN:
        return 0.0, 0.0, math.inf
    limit = max(1.0, limits.ODD_FACTOR * float(np.quantile(first, limits.ODD_QUANTILE)))
    return float((first > limit).mean()), float((last > limit).mean()), limit


ALARM = Alarm(
    number=16,
    name="degenerate",
    nature="alignment",
    title="Completions repeat themselves or are no language",
    figure="share of late completions",
    remedies=(
        "repetition-penalty",
        "copy-penalty",
        "kl-target",
        "inspect-reward",
        "refresh-reward",
    ),
    precedence=80,
    check=check,
)
