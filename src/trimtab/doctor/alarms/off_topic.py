"""Alarm 21: completions no longer depend on their prompts."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from trimtab.doctor.alarm import Alarm, Symptom, use
from trimtab.doctor.alarms import thresholds as limits
from trimtab.doctor.evidence import Array, Evidence, Rollout, Unchecked
from trimtab.doctor.signals import gold_rose, reward_rose


def check(e: Evidence) -> Symptom | None:
    """Completions of one prompt were more alike than those of different prompts, and no longer are."""
    early, late = e.early_and_late
    if min(len({r.prompt for r in part}) for part in (early, late)) < limits.TOPIC_PROMPTS:
        raise Unchecked(
            f"fewer than {limits.TOPIC_PROMPTS:g} prompts at the start or end have completions; "
            "set loop.sample_steps lower"
        )
    early, late = some_prompts(early), some_prompts(late)
    before, p = dependence(early, int(limits.TOPIC_SHUFFLES))
    if before < limits.TOPIC_MIN or p > limits.TOPIC_P:
        raise Unchecked("not enough data: at the start, completions do not show their prompts")
    after, _ = dependence(late, 0)
    if not reward_rose(early, late) or after > limits.TOPIC_LEFT * before:
        return None
    rose = gold_rose(e)
    if rose:
        return None  # what is asked for does not depend on the prompt
    return Symptom(
        message=(
            "Completions of one prompt were more alike than completions of different prompts by "
            f"{before:.3f} at the start, and are by {max(after, 0.0):.3f} at the end (similarity of their "
            "words): they no longer depend on what is asked."
        ),
        number=after / before,
        limit=limits.TOPIC_LEFT,
        tier="T2" if rose is not None else "T1",
        cause="the reward does not read the prompt",
        other_causes=("the reward prefers one template", "the learning rate is too high"),
        remedies=(use("inspect-reward"), use("kl-target")),
        rollouts=late[::-1],
    )


def some_prompts(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """All completions of evenly spread prompts, up to about ``limits.TOPIC_ROLLOUTS`` in all."""
    prompts = list(dict.fromkeys(r.prompt for r in rollouts))
    most = max(int(limits.TOPIC_PROMPTS), int(len(prompts) * limits.TOPIC_ROLLOUTS / len(rollouts)))
    picked = np.unique(np.linspace(0, len(prompts) - 1, min(most, len(prompts))).astype(int))
    chosen = {prompts[i] for i in picked}
    return [r for r in rollouts if r.prompt in chosen]


def dependence(rollouts: Sequence[Rollout], shuffles: int) -> tuple[float, float]:
    """How much completions depend on their prompt, by word overlap, and p by shuffling the prompts.

    Where prompts have several completions: similarity of two completions of one prompt, minus that of
    completions of different prompts. Otherwise: similarity of a completion to its own prompt, minus that
    to the others. Similarity is the cosine of binary word vectors with inverse document frequencies.
    """
    groups = {p: i for i, p in enumerate(dict.fromkeys(r.prompt for r in rollouts))}
    label = np.array([groups[r.prompt] for r in rollouts])
    if len(label) >= 2 * len(groups):
        vectors = word_vectors([r.completion for r in rollouts])
        alike = vectors @ vectors.T
        np.fill_diagonal(alike, np.nan)
    else:
        vectors = word_vectors([*(r.completion for r in rollouts), *groups])
        alike = (vectors[: len(label)] @ vectors[len(label) :].T)[:, label]

    def gap(labels: Array) -> float:
        same = labels[:, None] == labels[None, :]
        return float(np.nanmean(alike[same]) - np.nanmean(alike[~same]))

    value = gap(label)
    rng = np.random.default_rng(0)
    above = sum(gap(rng.permutation(label)) >= value for _ in range(shuffles))
    return value, (1 + above) / (1 + shuffles)


def word_vectors(texts: Sequence[str]) -> Array:
    """Unit vectors [n, words] of inverse document frequencies; zero for a text without words."""
    sets = [set(re.findall(r"\w+", t.lower())) for t in texts]
    index = {w: i for i, w in enumerate(sorted(set[str]().union(*sets)))}
    table = np.zeros((len(texts), max(1, len(index))))
    for row, words in zip(table, sets, strict=True):
        row[[index[w] for w in words]] = 1.0
    table *= np.log((1 + len(texts)) / (1 + table.sum(0)))
    norms = np.linalg.norm(table, axis=1, keepdims=True)
    return table / np.maximum(norms, 1e-12)


ALARM = Alarm(
    number=21,
    name="off-topic",
    nature="alignment",
    title="Completions no longer depend on their prompts",
    figure="dependence on the prompt left, share of the start",
    remedies=("inspect-reward", "kl-target", "refresh-reward"),
    precedence=101,
    check=check,
)
