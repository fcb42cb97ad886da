"""Alarm 14: rewards are missing, constant, or replaced by a fallback value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from trimtab.doctor.alarm import Alarm, Symptom, use
from trimtab.doctor.alarms import thresholds as limits
from trimtab.doctor.evidence import Array, Evidence, Rollout
from trimtab.doctor.signals import constant_reward, mean, words
from trimtab.stats.change import onset, two_means, two_rates

StepRollouts = dict[int, list[Rollout]]


def check(e: Evidence) -> Symptom | None:
    """Too many completions are unscored, all get one reward, or many suddenly get one low value."""
    _, rewards = e.require("reward/mean", 4)
    x, unscored = e.series("reward/unscored")
    if len(unscored) and (share := float(unscored.mean())) > limits.UNSCORED:
        return Symptom(
            message=f"{share:.1%} of completions got no reward ({unscored.max():.0%} in the worst step).",
            number=share,
            limit=limits.UNSCORED,
            cause="a reward function or judge fails or times out",
            remedies=(use("reward-timeout"),),
            step=onset(x, unscored > limits.UNSCORED, 1),
            rollouts=[r for r in e.rollouts if r.reward is None],
            note=lambda r: ", ".join(
                f"{k}: {v}" for k, v in r.scores.items() if isinstance(v, str)
            ),
        )
    if constant_reward(e):
        return Symptom(
            message=f"Every completion gets the same reward ({rewards[-1]:.3g}).",
            number=0.0,
            limit=limits.NOISE,
            cause="the reward does not depend on the completion",
            remedies=(use("inspect-reward"),),
            rollouts=e.rollouts,
        )
    return _fallback(e)


def _fallback(e: Evidence) -> Symptom | None:
    """One low value that many completions suddenly get, as failures turned into numbers do."""
    steps = {s: [r for r in rs if r.reward is not None] for s, rs in e.by_step().items()}
    # Where all rewards of a step are equal, a value that did not occur proves nothing.
    steps = {
        s: rs
        for s, rs in steps.items()
        if len(rs) >= limits.FALLBACK_ROWS and len({r.reward for r in rs}) > 1
    }
    if len(steps) < limits.FALLBACK_STEPS:
        return None
    every = [r for rs in steps.values() for r in rs]
    rewards = [r.reward for r in every if r.reward is not None]
    median = float(np.median(rewards))
    counts = Counter(round(x, 6) for x in rewards)
    order = list(steps)
    for value, _ in counts.most_common(int(limits.FALLBACK_VALUES)):
        if value >= median:
            continue
        share = np.array([mean([_gets(r, value) for r in steps[s]]) for s in order])
        cut = _change(share, [len(steps[s]) for s in order])
        if cut is None:
            continue
        early = np.array([r.reward for s in order[:cut] for r in steps[s]], np.float64)
        late = [r for s in order[cut:] for r in steps[s]]
        others = np.array([r.reward for r in late if not _gets(r, value)], np.float64)
        # A failure leaves the others their rewards; where all of them fell, completions got worse.
        unharmed = others.mean() > early.mean() - limits.FALLBACK_REST * early.std()
        if unharmed and _regardless_of_text(value, late, every):
            return Symptom(
                message=(
                    f"From step {order[cut]} on {share[cut:].mean():.0%} of completions get exactly "
                    f"{value:g}, whatever they say; {share[:cut].mean():.1%} got it before."
                ),
                number=float(share[cut:].mean()),
                limit=limits.FALLBACK_AFTER,
                cause=f"failures of the reward are scored as {value:g} (a judge that times out or refuses)",
                other_causes=("the reward was changed during the run",),
                remedies=(use("reward-timeout"),),
                step=order[cut],
                rollouts=[r for r in late if _gets(r, value)],
            )
    return None


def _change(share: Array, counts: Sequence[int]) -> int | None:
    """The first position at which the share of a value rises from about 0 and stays up."""
    for cut in range(1, len(share) - 1):
        before, after = share[:cut], share[cut:]
        if (
            before.mean() > limits.FALLBACK_BEFORE
            or after.min() < limits.FALLBACK_EVERY
            or after.mean() < limits.FALLBACK_AFTER
        ):
            continue
        n_before, n_after = sum(counts[:cut]), sum(counts[cut:])
        z = two_rates(
            round(before.mean() * n_before), n_before, round(after.mean() * n_after), n_after
        )
        if z > limits.FALLBACK_Z:
            return cut
    return None


def _gets(r: Rollout, value: float) -> bool:
    return r.reward is not None and round(r.reward, 6) == value


def _regardless_of_text(value: float, late: Sequence[Rollout], every: Sequence[Rollout]) -> bool:
    """Whether completions get the value whatever they say, as failures do.

    Those that get it must be as similar to the other completions of their prompt as these are to one
    another; bad completions say something else.
    """
    others: dict[str, list[tuple[Rollout, set[str]]]] = {}
    for r in every:
        if not _gets(r, value):
            others.setdefault(r.prompt, []).append((r, _parts(r)))
    hit: list[float] = []
    free: list[float] = []
    for r in late[:: max(1, len(late) // 1000)]:
        parts, same_prompt = _parts(r), others.get(r.prompt, [])
        sample = same_prompt[:: max(1, len(same_prompt) // 32)]
        similarity = [_overlap(parts, theirs) for other, theirs in sample if other is not r]
        if similarity:
            (hit if _gets(r, value) else free).append(max(similarity))
    if min(len(hit), len(free)) < limits.BLIND_MIN:
        return False
    return mean(hit) > limits.BLIND_LIKE * mean(free) and two_means(hit, free) < limits.BLIND_T


def _parts(r: Rollout) -> set[str]:
    """Words and pairs of neighbouring words."""
    text = words(r)
    return {*text, *(f"{a} {b}" for a, b in pairwise(text))}


def _overlap(a: set[str], b: set[str]) -> float:
    return len(a & b) / max(1, len(a | b))


ALARM = Alarm(
    number=14,
    name="reward-pipe",
    nature="mechanical",
    title="Rewards are missing, constant or replaced",
    figure="share of completions without a reward, or with the fallback value",
    remedies=("reward-timeout", "inspect-reward", "whiten"),
    precedence=10,
    check=check,
)
