"""Agreement of a reward with held-out comparisons, and other explanations of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from trimtab.stats.uncertainty import bootstrap_mean, calibration_bins, ece
from trimtab.types import Group

Scored = Sequence[tuple[Group, Sequence[float | None]]]
"""Groups, each with a score for every completion; None where it failed."""

FIGURES = frozenset(
    ("accuracy", "accuracy_low", "accuracy_high", "ece", "length_only", "pairs", "ceiling")
)
"""Metrics of each held-out set; see ``figures``."""


@dataclass(slots=True, frozen=True)
class Pair:
    """Two completions of one prompt that differ in rank, and how their scores compare."""

    group: int
    """Index of the prompt."""
    correct: float
    """1 where the better one scores higher, 0 where lower, 0.5 where equal."""
    longer: float
    """1 where the better one is longer, 0 where shorter, 0.5 where equal."""
    confidence: float
    """sigmoid(|difference of scores|)."""
    ceiling: float | None
    """Accuracy of the best possible predictor, where the labeller's own probability is known."""


def pairs(scored: Scored) -> list[Pair]:
    """Every pair of one prompt that differs in rank and has both scores."""
    result: list[Pair] = []
    for number, (group, scores) in enumerate(scored):
        probs = group.extra.get("probs")
        for i, a in enumerate(group.completions):
            for j in range(i + 1, len(group.completions)):
                b = group.completions[j]
                x, y = scores[i], scores[j]
                if a.rank is None or b.rank is None or a.rank == b.rank or x is None or y is None:
                    continue
                sign = 1 if a.rank < b.rank else -1
                margin, gap = sign * (x - y), sign * (len(a) - len(b))
                p = float(probs[i][j]) if probs is not None else None
                result.append(
                    Pair(
                        group=number,
                        correct=(1 + float(np.sign(margin))) / 2,
                        longer=(1 + float(np.sign(gap))) / 2,
                        confidence=float(expit(min(abs(margin), 50.0))),
                        ceiling=None if p is None else max(p, 1 - p),
                    )
                )
    return result


def figures(scored: Scored) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Agreement of scores with ranks, over the pairs of one prompt that differ in rank.

    Args:
        scored: Groups with a score for each completion; pairs with a failed score are dropped.

    Returns:
        ``FIGURES``: accuracy counts equal scores half, its 95 % interval is over prompts;
        ``length_only`` is the accuracy of length alone; ``ceiling``, where rows have the labellers'
        own ``probs``, that of the best possible predictor. And the bins of the calibration of
        sigmoid(score difference). Both are empty without a pair.
    """
    every = pairs(scored)
    if not every:
        return {}, []
    correct, confidence = [p.correct for p in every], [p.confidence for p in every]
    length = float(np.mean([p.longer for p in every]))
    metrics = _accuracy(every) | {
        "ece": ece(confidence, correct),
        "length_only": max(length, 1 - length),
    }
    ceiling = [p.ceiling for p in every if p.ceiling is not None]
    if ceiling:
        metrics["ceiling"] = float(np.mean(ceiling))
    return metrics, calibration_bins(confidence, correct)


def _accuracy(every: Sequence[Pair]) -> dict[str, float]:
    mean, low, high = bootstrap_mean([p.correct for p in every], [p.group for p in every])
    bounds = {"accuracy_low": low, "accuracy_high": high}
    return {"accuracy": mean, **bounds, "pairs": float(len(every))}


def by_subset(scored: Scored, name: Callable[[Group], str]) -> dict[str, dict[str, float]]:
    """``figures`` of the groups of each name, in order of name; those without a pair are dropped."""
    subsets: dict[str, list[tuple[Group, Sequence[float | None]]]] = {}
    for group, scores in scored:
        subsets.setdefault(name(group), []).append((group, scores))
    results = {key: figures(subset)[0] for key, subset in sorted(subsets.items())}
    return {key: metrics for key, metrics in results.items() if metrics}


def crossed_with_length(scored: Scored) -> dict[str, dict[str, float]]:
    """Accuracy where the better completion is longer, and where it is shorter.

    A reward that pays for length is right in the first case and wrong in the second.
    """
    every = pairs(scored)
    subsets = {
        "better is longer": [p for p in every if p.longer == 1.0],
        "better is shorter": [p for p in every if p.longer == 0.0],
    }
    return {name: _accuracy(subset) for name, subset in subsets.items() if subset}


def shuffled(scored: Scored, draws: int = 200, seed: int = 0) -> tuple[float, float]:
    """Accuracy with the labels of randomly chosen prompts reversed: (mean, 97.5th percentile).

    A reward whose accuracy is not above the second value has learned nothing that these pairs show.
    """
    every = pairs(scored)
    owner = np.array([p.group for p in every])
    correct = np.array([p.correct for p in every])
    rng = np.random.default_rng(seed)
    flips = rng.random((draws, int(owner.max(initial=-1)) + 1)) < 0.5
    accuracy = np.where(flips[:, owner], 1.0 - correct, correct).mean(1)
    return float(accuracy.mean()), float(np.quantile(accuracy, 0.975))
