"""Simulated annotators: Bradley-Terry on the gold score plus individual biases."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import expit

from trimtab.feedback import records
from trimtab.feedback.items import read_items
from trimtab.feedback.judgement import Judgement
from trimtab.sandbox.world import CLOSINGS, OPENINGS, Scene, gold
from trimtab.types import Row


@dataclass(frozen=True, slots=True)
class Annotator:
    """One annotator. A utility difference of 1 is one nat of log-odds."""

    name: str
    scale: float = 8.0
    """Nats per point of gold score."""
    length_bias: float = 0.0
    """Nats per word."""
    flattery_bias: float = 0.0
    """Nats for agreeing with the user."""
    format_bias: float = 0.0
    """Nats for a polite opening or closing."""
    position_bias: float = 0.0
    """Nats for the completion shown first."""
    carelessness: float = 0.0
    """Share of judgements that are coin flips."""
    severity: float = 0.0
    """Nats subtracted from every absolute score; comparisons are not affected."""

    def utility(self, scene: Scene, completion: str) -> float:
        """Utility of a completion for this annotator, in nats."""
        value = self.scale * gold(scene, completion).total
        value += self.length_bias * len(completion.split())
        value += self.flattery_bias * ("you are right" in completion)
        return value + self.format_bias * any(p in completion for p in (*OPENINGS, *CLOSINGS))

    def prob(self, scene: Scene, a: str, b: str) -> float:
        """P(a is preferred to b) if a is shown first."""
        gap = self.utility(scene, a) - self.utility(scene, b) + self.position_bias
        return (1.0 - self.carelessness) * float(expit(gap)) + self.carelessness / 2

    def choose(self, scene: Scene, a: str, b: str, rng: np.random.Generator) -> int:
        """0 for a, 1 for b."""
        return 0 if rng.random() < self.prob(scene, a, b) else 1

    def rate(self, scene: Scene, completion: str, rng: np.random.Generator, levels: int = 7) -> int:
        """An absolute score from 1 to ``levels``, with the noise of a comparison.

        The levels are equidistant, and the scale spans one point of gold score.
        """
        if rng.random() < self.carelessness:
            return int(rng.integers(1, levels + 1))
        seen = self.utility(scene, completion) - self.severity + rng.gumbel() - np.euler_gamma
        step = self.scale / (levels - 1)
        return int(np.clip(round(1 + seen / step), 1, levels))

    def rank(self, scene: Scene, completions: Sequence[str], rng: np.random.Generator) -> list[int]:
        """Rank of each completion, 0 best: Plackett-Luce, so that each pair is Bradley-Terry."""
        if rng.random() < self.carelessness:
            return [int(i) for i in rng.permutation(len(completions))]
        noisy = [self.utility(scene, text) + rng.gumbel() for text in completions]
        return np.argsort(np.argsort([-x for x in noisy])).tolist()


def panel() -> list[Annotator]:
    """Three annotators with mild biases: one likes length, one likes flattery, one is careless."""
    return [
        Annotator("lena", length_bias=0.03),
        Annotator("felix", flattery_bias=0.3, format_bias=0.1),
        Annotator("carl", carelessness=0.1),
    ]


def ceiling(probs: Sequence[float]) -> float:
    """Expected accuracy of the best possible predictor: mean of max(p, 1 - p)."""
    return float(np.mean([max(p, 1.0 - p) for p in probs]))


def label_items(out: Path, items: str, limit: int | None = None, seed: int = 0) -> dict[str, int]:
    """Label sandbox items with the panel, one annotator per item.

    Args:
        out: Label folder: items.jsonl, judgements.jsonl, and rows.jsonl to train on.
        items: A file of items whose ``extra`` holds the scene.
        limit: Number of items to label, from the first; None for all.
    """
    annotators = panel()
    labelled = read_items(items, limit)
    judgements: list[Judgement] = []
    rows: list[Row] = []
    for i, item in enumerate(labelled):
        rng = np.random.default_rng((seed, 13, i))
        annotator = annotators[int(rng.integers(len(annotators)))]
        ranks = annotator.rank(Scene.from_json(item.extra["scene"]), item.completions, rng)
        judgements.append(
            Judgement(
                item=item.id,
                annotator=annotator.name,
                who="simulated",
                ranks=tuple(ranks),
                seed=seed,
            )
        )
        row = {"id": item.id, "prompt": list(item.prompt), "completions": list(item.completions)}
        rows.append({**row, "ranks": ranks, "annotator": annotator.name})
    records.write(out / records.ITEMS, labelled)
    records.write(out / records.JUDGEMENTS, judgements)
    records.write(out / "rows.jsonl", rows)
    return {"items": len(labelled), "people": len(annotators)}
