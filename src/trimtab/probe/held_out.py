"""Accuracy of a reward on held-out comparisons, compared with predictors that ignore the content."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from trimtab.audit.probe_result import ProbeResult
from trimtab.data.formats import Example
from trimtab.errors import DataError
from trimtab.evaluate import reward_models
from trimtab.probe.probe_report import AccuracyCard
from trimtab.probe.probed_reward import ProbedReward, disagreements
from trimtab.types import Group


def measure_accuracy(
    reward: ProbedReward, ranked: Sequence[Example], source: str, by: str
) -> tuple[AccuracyCard, list[ProbeResult]]:
    """Accuracy on ranked rows: of all, by subset, crossed with length, and of blind predictors.

    Args:
        ranked: Rows with two or more ranked completions.
        by: Column that names a row's subset.

    Raises:
        DataError: no pair could be scored.
    """
    groups = [g for g in map(reward.renderer.scoring, ranked) if g is not None]
    reward.rewards(groups)
    scored = list(zip(groups, reward.scores(groups), strict=True))
    metrics, bins = reward_models.figures(scored)
    if not metrics:
        raise DataError(f"{source}: the reward scored no pair of completions that differ in rank")
    shuffled, shuffled_high = reward_models.shuffled(scored)
    spread = disagreements(groups)
    # Only a score difference in nats has a calibration: one model that was trained on pairs.
    in_nats = reward.spec.model is not None
    ece = metrics["ece"]
    card = AccuracyCard(
        metrics={k: v for k, v in metrics.items() if in_nats or k != "ece"},
        shuffled=shuffled,
        shuffled_high=shuffled_high,
        bins=bins if in_nats else None,
        subsets=reward_models.by_subset(scored, lambda g: str(g.extra.get(by, "all"))),
        length=reward_models.crossed_with_length(scored),
        unscored=float(np.mean([s is None for _, scores in scored for s in scores])),
        other_prompt=_other_prompt(reward, groups) if reward.spec.judge is None else None,
        disagreement=float(np.mean(spread)) if spread else None,
    )
    baseline = max(metrics["length_only"], 0.5)
    results = [
        ProbeResult(
            of="reward",
            probe="accuracy",
            value=metrics["accuracy"],
            n=int(metrics["pairs"]),
            low=metrics["accuracy_low"],
            high=metrics["accuracy_high"],
            baseline=baseline,
            source=source,
            shuffled_high=shuffled_high,
            ceiling=metrics.get("ceiling"),
            grade="bad" if metrics["accuracy_low"] <= max(baseline, shuffled_high) else "good",
            about="share of held-out pairs in which the better completion scores higher",
        )
    ]
    if in_nats:
        results.append(
            ProbeResult(
                of="reward",
                probe="ece",
                value=ece,
                n=int(metrics["pairs"]),
                baseline=0.0,
                source=source,
                grade="good" if ece < 0.05 else "fair" if ece < 0.15 else "bad",
                about="mean distance between stated confidence and accuracy",
            )
        )
    return card, results


def _other_prompt(reward: ProbedReward, groups: Sequence[Group]) -> float:
    """Accuracy where each prompt is replaced by the next one's: what can be told without the prompt."""
    shifted: list[Group] = []
    for i, g in enumerate(groups):
        other = groups[(i + 1) % len(groups)]
        extra = {k: v for k, v in other.extra.items() if k != "probs"}
        completions = [replace(c, scores={}) for c in g.completions]
        shifted.append(Group(g.id, other.prompt, completions, other.text, extra))
    reward.rewards(shifted)
    metrics, _ = reward_models.figures(list(zip(shifted, reward.scores(shifted), strict=True)))
    return float(metrics.get("accuracy", math.nan))
