"""How often a reward agrees with comparisons it was not trained on, and what else could explain it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.stats.uncertainty import bootstrap_mean, calibration_bins, ece
from trimtab.types import Group

Scored = Sequence[tuple[Group, Sequence[float | None]]]
"""Groups, each with a score for every completion; None where there is none."""

FIGURES = frozenset(
    ("accuracy", "accuracy_low", "accuracy_high", "ece", "length_only", "pairs", "ceiling")
)
"""Of each held-out set; see ``figures``."""


@dataclass(slots=True, frozen=True)
class Pair:
    """Two answers to one prompt that differ in rank, and what their scores say of them."""

    group: int
    """Which prompt."""
    right: float
    """1 where the better one scores higher, 0 where lower, 1/2 where equal."""
    longer: float
    """1 where the better one is longer, 0 where shorter, 1/2 where equal."""
    confidence: float
    """sigmoid(|difference of scores|)."""
    ceiling: float | None
    """How often the best possible predictor is right, where the labeller's own odds are known."""


def pairs(found: Scored) -> list[Pair]:
    """Every pair of one prompt that does not tie and has both scores."""
    made: list[Pair] = []
    for number, (group, scores) in enumerate(found):
        probs = group.extra.get("probs")
        for i, a in enumerate(group.completions):
            for j in range(i + 1, len(group.completions)):
                b = group.completions[j]
                x, y = scores[i], scores[j]
                if a.rank is None or b.rank is None or a.rank == b.rank or x is None or y is None:
                    continue
                delta = x - y if a.rank < b.rank else y - x
                gap = len(a) - len(b) if a.rank < b.rank else len(b) - len(a)
                p = float(probs[i][j]) if probs is not None else None
                made.append(
                    Pair(
                        number,
                        0.5 if delta == 0 else float(delta > 0),
                        0.5 if gap == 0 else float(gap > 0),
                        1 / (1 + math.exp(-min(abs(delta), 50.0))),
                        None if p is None else max(p, 1 - p),
                    )
                )
    return made


def figures(
    found: Scored,
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Agreement of scores with ranks, over pairs of one prompt that do not tie.

    Args:
        found: Groups with a score for each completion; pairs with a missing one are left out.

    Returns:
        ``FIGURES`` (accuracy counts equal scores half, its 95 % interval is over prompts;
        ``length_only`` is the accuracy of length alone; ``ceiling``, where rows carry the
        labellers' own ``probs``, that of the best possible predictor) and the bins of the
        calibration of sigmoid(score difference). Both are empty without a pair.
    """
    held = pairs(found)
    if not held:
        return {}, []
    right = [p.right for p in held]
    confidence = [p.confidence for p in held]
    mean, low, high = bootstrap_mean(right, clusters=[p.group for p in held])
    length = float(np.mean([p.longer for p in held]))
    told = {
        "accuracy": mean,
        "accuracy_low": low,
        "accuracy_high": high,
        "ece": ece(confidence, right),
        "length_only": max(length, 1 - length),
        "pairs": float(len(right)),
    }
    ceiling = [p.ceiling for p in held if p.ceiling is not None]
    if ceiling:
        told["ceiling"] = float(np.mean(ceiling))
    return told, calibration_bins(confidence, right)


def by_subset(found: Scored, name: Callable[[Group], str]) -> dict[str, dict[str, float]]:
    """``figures`` of the groups of each name, in order of name; those without a pair are left out."""
    parts: dict[str, list[tuple[Group, Sequence[float | None]]]] = {}
    for group, scores in found:
        parts.setdefault(name(group), []).append((group, scores))
    told = {key: figures(part)[0] for key, part in sorted(parts.items())}
    return {key: mine for key, mine in told.items() if mine}


def crossed_with_length(found: Scored) -> dict[str, dict[str, float]]:
    """Accuracy where the better answer is longer, and where it is shorter: a reward that pays for
    length is right in the first and wrong in the second."""
    told: dict[str, dict[str, float]] = {}
    held = pairs(found)
    for name, longer in (("better is longer", 1.0), ("better is shorter", 0.0)):
        mine = [p for p in held if p.longer == longer]
        if mine:
            mean, low, high = bootstrap_mean([p.right for p in mine], [p.group for p in mine])
            told[name] = {
                "accuracy": mean, "accuracy_low": low, "accuracy_high": high, "pairs": len(mine)
            }  # fmt: skip
    return told


def shuffled(found: Scored, draws: int = 200, seed: int = 0) -> tuple[float, float]:
    """Accuracy with the labels of whole prompts turned over at random: (mean, 97.5th percentile).

    A reward whose accuracy is not above the second has learned nothing that these pairs can show.
    """
    held = pairs(found)
    owner = np.array([p.group for p in held])
    right = np.array([p.right for p in held])
    rng = np.random.default_rng(seed)
    flips = rng.random((draws, int(owner.max(initial=-1)) + 1)) < 0.5
    turned = np.where(flips[:, owner], 1.0 - right, right).mean(1)
    return float(turned.mean()), float(np.quantile(turned, 0.975))
