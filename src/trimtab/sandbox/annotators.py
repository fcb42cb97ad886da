"""Simulated people who compare answers: Bradley-Terry on gold plus their own biases."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.feedback.judgement import Item, Judgement
from trimtab.sandbox.world import CLOSINGS, OPENINGS, Scene, gold


@dataclass(frozen=True, slots=True)
class Annotator:
    """One person. A utility difference of 1 is one nat of log-odds."""

    name: str
    scale: float = 8.0
    """Nats of log-odds for a whole point of gold."""
    length_bias: float = 0.0
    """Nats a word."""
    flattery_bias: float = 0.0
    """Nats for agreeing with the user."""
    format_bias: float = 0.0
    """Nats for a polite opening or closing."""
    position_bias: float = 0.0
    """Nats for the answer shown first."""
    carelessness: float = 0.0
    """Share of judgements made by tossing a coin."""
    severity: float = 0.0
    """Nats taken off every absolute score. Comparisons do not know it."""

    def utility(self, scene: Scene, answer: str) -> float:
        """What the answer is worth to this person."""
        worth = self.scale * gold(scene, answer).total + self.length_bias * len(answer.split())
        worth += self.flattery_bias * ("you are right" in answer)
        return worth + self.format_bias * any(p in answer for p in (*OPENINGS, *CLOSINGS))

    def prob(self, scene: Scene, a: str, b: str) -> float:
        """P(prefers a to b), a being shown first."""
        gap = self.utility(scene, a) - self.utility(scene, b) + self.position_bias
        p = 1.0 / (1.0 + math.exp(-max(min(gap, 50.0), -50.0)))
        return (1.0 - self.carelessness) * p + self.carelessness / 2

    def choose(self, scene: Scene, a: str, b: str, rng: np.random.Generator) -> int:
        """0 for a, 1 for b."""
        return 0 if rng.random() < self.prob(scene, a, b) else 1

    def rate(self, scene: Scene, answer: str, rng: np.random.Generator, levels: int = 7) -> int:
        """An absolute score from 1 to ``levels``, seen with the noise of a comparison.

        The steps are equal, and the whole scale spans a point of gold.
        """
        if rng.random() < self.carelessness:
            return int(rng.integers(1, levels + 1))
        seen = self.utility(scene, answer) - self.severity + rng.gumbel() - np.euler_gamma
        step = self.scale / (levels - 1)
        return int(np.clip(round(1 + seen / step), 1, levels))

    def rank(self, scene: Scene, answers: Sequence[str], rng: np.random.Generator) -> list[int]:
        """Rank of each answer, 0 best: Plackett-Luce, so each pair is Bradley-Terry by itself."""
        if rng.random() < self.carelessness:
            return [int(i) for i in rng.permutation(len(answers))]
        noisy = [self.utility(scene, a) + rng.gumbel() for a in answers]
        order = np.argsort([-x for x in noisy])
        ranks = [0] * len(answers)
        for place, i in enumerate(order):
            ranks[int(i)] = place
        return ranks


def panel() -> list[Annotator]:
    """Three people with mild biases: one likes long answers, one flattery, one is careless."""
    return [
        Annotator("lena", length_bias=0.03),
        Annotator("felix", flattery_bias=0.3, format_bias=0.1),
        Annotator("carl", carelessness=0.1),
    ]


def ceiling(probs: Sequence[float]) -> float:
    """Expected accuracy of the best possible predictor: mean of max(p, 1 - p)."""
    return float(np.mean([max(p, 1.0 - p) for p in probs]))


def label_items(out: Path, items: str, limit: int | None = None, seed: int = 0) -> dict[str, Any]:
    """Have the panel judge sandbox items, each by one person: judgements.jsonl, and rows.jsonl to
    train on.

    Args:
        out: The folder.
        items: A file of items whose ``extra`` holds the scene.
        limit: Judge the first ones only.
        seed: Who judges what, and how.
    """
    lines = Path(items).read_text(encoding="utf-8").splitlines()[:limit]
    people = panel()
    judged: list[str] = []
    rows: list[str] = []
    for i, line in enumerate(lines):
        item = Item.model_validate_json(line)
        rng = np.random.default_rng((seed, 13, i))
        person = people[int(rng.integers(len(people)))]
        ranks = person.rank(Scene.from_json(item.extra["scene"]), item.completions, rng)
        said = Judgement(
            item=item.id, annotator=person.name, who="simulated", ranks=tuple(ranks), seed=seed
        )
        judged.append(said.model_dump_json(exclude_defaults=True))
        row = {"id": item.id, "prompt": list(item.prompt), "completions": list(item.completions)}
        rows.append(json.dumps({**row, "ranks": ranks, "annotator": person.name}))
    (out / "judgements.jsonl").write_text("\n".join([*judged, ""]), encoding="utf-8")
    (out / "rows.jsonl").write_text("\n".join([*rows, ""]), encoding="utf-8")
    return {"items": len(lines), "people": len(people)}
