"""Alarm 1: the proxy rises and what is wanted falls. On the gold audit (T2), or a second reward (T1)."""

from __future__ import annotations

import math

import numpy as np

from trimtab.audit.gold_audit import AuditedRollout
from trimtab.doctor.alarm import Found, held_kl
from trimtab.doctor.evidence import Evidence, Unchecked, edge
from trimtab.errors import DataError
from trimtab.stats.change import drop, onset, slope, two_means
from trimtab.stats.overoptimisation import Overoptimisation, fit_overoptimisation

LEAST = 16
"""Audited rollouts below which nothing is said."""
SURE = 0.02
"""The p below which gold fell."""
LITTLE = 0.1
"""Falls below this share of the spread of gold are not worth an alarm."""


def overoptimised(e: Evidence) -> Found | None:
    """See the module."""
    watched = _watched(e)
    if len(e.audit) < LEAST and not watched:
        raise Unchecked(
            f"{len(e.audit)} audited rollouts, {LEAST} are needed (audit.jsonl), and no second reward with "
            "weight 0 is watched"
        )
    return _audited(e) if len(e.audit) >= LEAST else _second(e, watched)


def _audited(e: Evidence) -> Found | None:
    golds = np.array([a.gold for a in e.audit])
    p, split = drop(golds.tolist(), _planned(e))
    if p >= SURE:
        return None
    # Down now, and not only once: what was audited last is still below what came before the fall.
    last = golds[max(split, len(golds) - max(8, len(golds) // 5)) :]
    fell = float(golds[:split].mean() - last.mean())
    if two_means(last, golds[:split]) < 1.645 or fell < LITTLE * float(golds.std()):
        return None
    best = e.audit[split - 1].step
    # Of the proxy all logged rollouts are known.
    proxies = [(r.step, r.reward) for r in e.rollouts if r.reward is not None]
    proxies = proxies or [(a.step, a.proxy) for a in e.audit]
    n = max(4, len(proxies) // 5)
    late = [v for _, v in proxies[-n:]]
    rise = two_means([v for s, v in proxies if s <= best], late)
    if min(rise, two_means([v for _, v in proxies[:n]], late)) <= 2:
        return None
    fit = fitted(e)
    past = ""
    if fit is not None and 0.1 < fit.peak < math.inf:
        past = f" The fitted peak of gold is at sqrt(KL) {fit.peak:.2f}."
    kl = _kl_at(e, best)
    target = kl if kl is not None and kl > 0 else 6.0
    shown = [r for r in reversed(e.rollouts) if r.reward is not None]
    shown.sort(key=lambda r: -(r.reward or 0.0))
    return Found(
        f"Over the audit of {len(e.audit)} rollouts gold fell from {golds[:split].mean():.3f} (until about step {best}) to "
        f"{last.mean():.3f} now (p {p:.1g}, however often it is looked at), while the proxy rose (t {rise:.1f}).{past}",
        p, SURE, "T2", "the reward model is trusted further than it was trained",
        f"Go back to the best audited checkpoint (about step {best:.0f}) and hold KL near {target:.1f} nats; refresh the reward "
        "model with labelled rollouts of now.",
        held_kl(e, target), best,
        ("too few or too noisy labels (alarm 6)", "beta is too low"), shown,
    )  # fmt: skip


def _planned(e: Evidence) -> int:
    """Audited rollouts there will be at the planned end."""
    done = max([a.step for a in e.audit] + [int(r["step"]) for r in e.rows[-1:]])
    return round(len(e.audit) * max(1.0, e.total / max(done, 1)))


def _kl_at(e: Evidence, step: float) -> float | None:
    x, kl = e.series("objective/kl")
    return float(kl[np.argmin(np.abs(x - step))]) if len(x) else None


def fitted(e: Evidence) -> Overoptimisation | None:
    """Gao's form for RL through the audit's means by step; None where it cannot be fitted."""
    by: dict[int, list[AuditedRollout]] = {}
    for a in e.audit:
        by.setdefault(a.step, []).append(a)
    points: list[tuple[float, float]] = []
    for step, mine in sorted(by.items()):
        own = [a.kl for a in mine if a.kl is not None]
        kl = float(np.mean(own)) if own else _kl_at(e, step)
        if kl is not None:
            points.append((kl, float(np.mean([a.gold for a in mine]))))
    if len(points) < 4:
        return None
    start = points[0][1]
    try:
        return fit_overoptimisation([k for k, _ in points], [g - start for _, g in points], "rl")
    except DataError:
        return None


def _watched(e: Evidence) -> list[str]:
    """Rewards of weight 0: watched, not trained on."""
    specs = [r for r in e.config.get("rewards") or () if isinstance(r, dict)]
    return [str(r["name"]) for r in specs if r.get("weight") == 0 and e.has(f"reward/{r['name']}")]


def _second(e: Evidence, names: list[str]) -> Found | None:
    x, proxy = e.want("reward/mean")
    for name in names:
        at, other = e.series(f"reward/{name}")
        if len(at) < 8:
            continue
        # From its best stretch on.
        window = max(3, len(other) // 5)
        means = np.convolve(other, np.ones(window) / window, mode="valid")
        top = int(np.argmax(means))
        rest = slice(top, len(other))
        if len(other[rest]) < 8:
            continue
        m, _, high = slope(at[rest], other[rest])
        rise = edge(proxy, True) - edge(proxy, False)
        _, low, _ = slope(x, proxy)
        fell = float(means[top] - edge(other, True))
        noise = float(np.std(np.diff(other))) / math.sqrt(2) + 1e-9
        if high < 0 and rise > 0 and low > 0 and fell > 1.5 * noise:
            return Found(
                f"The reward trained on rose by {rise:.3g} while {name!r}, which is only watched, fell by {fell:.3g} from its "
                f"best ({m:+.2g} a step).",
                fell, 1.5 * noise, "T1", "the reward model is trusted further than it was trained",
                "Have some rollouts judged (trimtab audit), and go back to where the second reward was best.",
                held_kl(e, 6.0),
                onset(at, np.arange(len(at)) >= top + window // 2, 1), ("too few or too noisy labels (alarm 6)",),
                sorted((r for r in e.rollouts if r.reward is not None), key=lambda r: -r.step),
            )  # fmt: skip
    return None
