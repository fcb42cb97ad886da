"""Alarm 1: the reward rises and the ground truth falls, by the gold audit or by a second reward."""

from __future__ import annotations

import math

import numpy as np

from trimtab.audit.gold_audit import AuditedRollout
from trimtab.doctor.alarm import Alarm, Symptom, use
from trimtab.doctor.alarms import thresholds as limits
from trimtab.doctor.evidence import Evidence, Unchecked, end_mean, start_mean
from trimtab.errors import DataError
from trimtab.stats.change import drop, onset, slope, two_means
from trimtab.stats.overoptimisation import Overoptimisation, fit_overoptimisation

CAUSE = "the policy is optimised beyond the data that the reward model was trained on"


def check(e: Evidence) -> Symptom | None:
    """The proxy rises while gold, or a reward that is only watched, falls."""
    if len(e.audit) >= limits.AUDIT_MIN:
        return _by_audit(e)
    watched = [r.name for r in e.settings.rewards if r.weight == 0 and e.has(f"reward/{r.name}")]
    if not watched:
        raise Unchecked(
            f"{len(e.audit)} audited rollouts in audit.jsonl, {limits.AUDIT_MIN:g} are needed, and there is "
            "no second reward of weight 0"
        )
    return next((s for name in watched if (s := _by_watched_reward(e, name))), None)


def _by_audit(e: Evidence) -> Symptom | None:
    golds = np.array([a.gold for a in e.audit])
    p, split = drop(golds.tolist(), _planned_audits(e))
    if p >= limits.GOLD_FELL_P:
        return None
    # It must still be down: the last audited rollouts are below those before the fall.
    before = golds[:split]
    last = golds[max(split, len(golds) - max(8, len(golds) // 5)) :]
    fall = float(before.mean() - last.mean())
    if two_means(last, before) < limits.GOLD_STILL_DOWN_T or fall < limits.GOLD_FALL_MIN * float(
        golds.std()
    ):
        return None
    best_step = e.audit[split - 1].step
    # The proxy is known of all logged rollouts, not only of the audited ones.
    proxies = [(r.step, r.reward) for r in e.rollouts if r.reward is not None]
    proxies = proxies or [(a.step, a.proxy) for a in e.audit]
    n = max(4, len(proxies) // 5)
    late = [v for _, v in proxies[-n:]]
    rise = two_means([v for s, v in proxies if s <= best_step], late)
    if min(rise, two_means([v for _, v in proxies[:n]], late)) <= limits.PROXY_ROSE_T:
        return None
    fit = fit_gold(e)
    peak = ""
    if fit is not None and 0.1 < fit.peak < math.inf:
        peak = f" The fitted peak of gold is at sqrt(KL) {fit.peak:.2f}."
    kl = _kl_at(e, best_step)
    return Symptom(
        message=(
            f"In the audit of {len(e.audit)} rollouts, gold fell from {before.mean():.3f} (until about "
            f"step {best_step}) to {last.mean():.3f} at the end (p = {p:.1g}, valid at any number of "
            f"looks), while the reward rose (t = {rise:.1f}).{peak}"
        ),
        number=p,
        limit=limits.GOLD_FELL_P,
        tier="T2",
        cause=CAUSE,
        other_causes=("too few or too noisy labels (alarm 6)", "beta is too low"),
        remedies=(
            use("restart-before"),
            use("kl-target", target=kl if kl is not None and kl > 0 else limits.KL_TARGET),
            use("retrain-reward"),
        ),
        step=best_step,
        rollouts=sorted(e.scored[::-1], key=lambda r: -(r.reward or 0.0)),
    )


def _planned_audits(e: Evidence) -> int:
    """Audited rollouts that there will be at the planned end."""
    done = max([a.step for a in e.audit] + [e.last_step])
    return round(len(e.audit) * max(1.0, e.total_steps / max(done, 1)))


def _kl_at(e: Evidence, step: float) -> float | None:
    x, kl = e.series("objective/kl")
    return float(kl[np.argmin(np.abs(x - step))]) if len(x) else None


def fit_gold(e: Evidence) -> Overoptimisation | None:
    """Gao's form for RL through the audit's means by step; None where it cannot be fitted."""
    by_step: dict[int, list[AuditedRollout]] = {}
    for a in e.audit:
        by_step.setdefault(a.step, []).append(a)
    points: list[tuple[float, float]] = []
    for step, audited in sorted(by_step.items()):
        kls = [a.kl for a in audited if a.kl is not None]
        kl = float(np.mean(kls)) if kls else _kl_at(e, step)
        if kl is not None:
            points.append((kl, float(np.mean([a.gold for a in audited]))))
    if len(points) < 4:
        return None
    start = points[0][1]
    try:
        return fit_overoptimisation([k for k, _ in points], [g - start for _, g in points], "rl")
    except DataError:
        return None


def _by_watched_reward(e: Evidence, name: str) -> Symptom | None:
    """A reward of weight 0 falls from its best stretch while the reward that is trained on rises."""
    x, proxy = e.require("reward/mean", int(limits.WATCHED_MIN))
    at, watched = e.series(f"reward/{name}")
    if len(at) < limits.WATCHED_MIN:
        return None
    window = max(3, len(watched) // 5)
    sums = np.concatenate(([0.0], watched.cumsum()))
    means = (sums[window:] - sums[:-window]) / window
    top = int(np.argmax(means))
    if len(watched) - top < limits.WATCHED_MIN:
        return None
    trend, _, high = slope(at[top:], watched[top:])
    rise = end_mean(proxy) - start_mean(proxy)
    _, low, _ = slope(x, proxy)
    fall = float(means[top] - end_mean(watched))
    noise = float(np.std(np.diff(watched))) / math.sqrt(2) + limits.NOISE
    if not (high < 0 < rise and low > 0 and fall > limits.WATCHED_FELL * noise):
        return None
    return Symptom(
        message=(
            f"The reward that is trained on rose by {rise:.3g}, while {name!r}, which is only watched, "
            f"fell by {fall:.3g} from its best ({trend:+.2g} per step)."
        ),
        number=fall,
        limit=limits.WATCHED_FELL * noise,
        tier="T1",
        cause=CAUSE,
        other_causes=("too few or too noisy labels (alarm 6)",),
        remedies=(use("judge-audited"), use("kl-target")),
        step=onset(at, np.arange(len(at)) >= top + window // 2, 1),
        rollouts=sorted(e.scored, key=lambda r: -r.step),
    )


ALARM = Alarm(
    number=1,
    name="over-optimised",
    nature="alignment",
    title="The reward rises and the ground truth falls",
    figure="p that gold has not fallen, or fall of the watched reward",
    remedies=(
        "stop-at-peak",
        "switch-ensemble",
        "refresh-reward",
        "retrain-reward",
        "audit",
        "worst-case",
        "uncertainty",
        "kl-range",
        "kl-target",
        "average-weights",
    ),
    precedence=130,
    check=check,
)
