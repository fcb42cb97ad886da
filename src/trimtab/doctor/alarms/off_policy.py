"""Alarm 12: the sampler is another policy than the trainer assumes."""

from __future__ import annotations

import math

import numpy as np

from trimtab.doctor.alarm import Alarm, Symptom, use
from trimtab.doctor.alarms import thresholds as limits
from trimtab.doctor.evidence import Array, Evidence, Unchecked, end_mean
from trimtab.stats.change import onset


def check(e: Evidence) -> Symptom | None:
    """Few samples count, sampler and trainer differ without a correction, or many tokens are clipped."""
    if not (e.has("sampler/ess") or e.has("policy/clip_fraction")):
        raise Unchecked("neither sampler/ess nor policy/clip_fraction was recorded")
    x, ess = e.series("sampler/ess")
    _, kl = e.series("sampler/kl")
    clip_x, clip = e.series("policy/clip_fraction")
    window = max(3, len(x) // 4)
    late_kl = _late_median(kl, window)
    low_ess = len(ess) >= limits.DRIFT_MIN and _late_median(ess, window) < limits.ESS
    apart = len(kl) >= limits.DRIFT_MIN and late_kl > limits.SAMPLER_KL
    clipped = _late_median(clip, max(3, len(clip_x) // 4)) if len(clip) >= limits.DRIFT_MIN else 0.0
    if low_ess or (apart and (clipped > limits.CLIPPED or not e.settings.corrects_mismatch)):
        at_once = len(kl) > 3 and kl[0] > limits.DRIFT_AT_ONCE * max(late_kl, limits.NOISE)
        share = _late_median(ess, window)
        settings = (
            "the sampler's distribution differs from the first step on: temperature, top-p, precision or "
            "weights"
        )
        lag = "the sampler runs on old weights"
        return Symptom(
            message=(
                f"Sampler and trainer are {end_mean(kl, 0.25):.3f} nats per token apart, and the effective "
                f"sample size is {share:.0%} of the batch: most of the update comes from few completions."
            ),
            number=share,
            limit=limits.ESS,
            cause=settings if at_once else lag,
            other_causes=(lag,) if at_once else ("temperature or precision differ",),
            remedies=(use("sync-sampler"), use("importance-cap")),
            step=onset(x, (ess < limits.ESS) if low_ess else (kl > limits.SAMPLER_KL)),
        )
    if clipped <= limits.CLIPPED:
        return None
    return Symptom(
        message=f"{clipped:.0%} of tokens are clipped: the policy leaves the batch that it learns from.",
        number=clipped,
        limit=limits.CLIPPED,
        cause=f"too many or too large updates per batch (lr {e.settings.lr or 0.0:g})",
        other_causes=("the sampler runs on old weights",),
        remedies=(use("fewer-updates"), use("lower-lr")),
        step=onset(clip_x, clip > limits.CLIPPED),
        severity="warning",
    )


def _late_median(values: Array, window: int) -> float:
    return float(np.median(values[-window:])) if len(values) else math.nan


ALARM = Alarm(
    number=12,
    name="off-policy",
    nature="mechanical",
    title="Sampler and trainer have drifted apart",
    figure="effective sample size, or share of tokens clipped",
    stages=("rl",),
    remedies=("sync-sampler", "importance-cap", "fewer-updates", "lower-lr"),
    precedence=50,
    check=check,
)
