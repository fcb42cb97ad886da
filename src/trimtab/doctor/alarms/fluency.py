"""Alarm 20: completions become improbable under the model that training started from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trimtab.doctor.alarm import Alarm, Symptom, use
from trimtab.doctor.alarms import thresholds as limits
from trimtab.doctor.evidence import MIN_ROLLOUTS, Array, Evidence, Rollout, Unchecked
from trimtab.doctor.signals import first_step, gold_rose, needs_power, reward_rose
from trimtab.stats.change import two_means


def check(e: Evidence) -> Symptom | None:
    """The negative log-likelihood per token under the start model rose far, while the reward rose."""
    early, late = e.early_and_late
    first, last = nll(early), nll(late)
    if min(len(first), len(last)) < MIN_ROLLOUTS:
        raise Unchecked(
            "fewer than 16 completions at the start or end have a log-likelihood under the start model; "
            "set loop.sample_steps"
        )
    before, after = float(first.mean()), float(last.mean())
    if not reward_rose(early, late):
        return None  # wrecked, not rewarded: alarms 2 and 7
    if after - before <= limits.FLUENCY_RISE or two_means(first, last) <= limits.FLUENCY_T:
        rise, z = limits.FLUENCY_RISE, limits.FLUENCY_T
        needs_power(first, last, rise, z, "log-likelihood in nats per token")
        return None
    rose = gold_rose(e)
    if rose:
        return None  # another language, and the right one
    return Symptom(
        message=(
            f"A token of the completions cost the start model {before:.2f} nats at the start and "
            f"{after:.2f} at the end: the policy writes text that the start model would not."
        ),
        number=after - before,
        limit=limits.FLUENCY_RISE,
        tier="T2" if rose is not None else "T1",
        cause="the reward pays for text that is no language",
        other_causes=("the learning rate is too high", "the task is far from the start model"),
        remedies=(use("kl-target"), use("inspect-reward"), use("lower-lr")),
        step=first_step(
            e, lambda rs: len(nll(rs)) > 0 and nll(rs).mean() > before + limits.FLUENCY_RISE
        ),
        rollouts=sorted(late, key=lambda r: -(r.nll or 0.0)),
        note=lambda r: f"{r.nll or 0.0:.2f} nats per token under the start model",
    )


def nll(rollouts: Sequence[Rollout]) -> Array:
    """Negative log-likelihood per token under the start model, of those that have one [n]."""
    return np.array([r.nll for r in rollouts if r.nll is not None and r.tokens], np.float64)


ALARM = Alarm(
    number=20,
    name="fluency",
    nature="alignment",
    title="Completions become improbable under the start model",
    figure="rise of the negative log-likelihood, nats per token",
    remedies=("kl-target", "inspect-reward", "lower-lr", "repetition-penalty", "refresh-reward"),
    precedence=96,
    check=check,
)
