"""Simulated annotators: Bradley-Terry on the gold score plus individual biases, or the majority of
attributes; with drift, fatigue, groups, and the seconds that a judgement takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict
from scipy.special import expit

from trimtab.feedback import records
from trimtab.feedback.items import read_items
from trimtab.feedback.judgement import Judgement
from trimtab.sandbox.right_answers import Style, style_of
from trimtab.sandbox.world import CLOSINGS, OPENINGS, WEIGHTS, Scene, gold
from trimtab.types import Row

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
ATTRIBUTES = (*WEIGHTS, "polite", "brief")
"""What a preference by majority may compare: the parts of the gold score, the number of polite
openings and closings, fewer words."""
STRENGTHS = (1.0, 2.5, 4.0)
"""Perceived nats from which on a completion is "better", "much better" and "very much better" than
another, as ``Judgement.strength`` 2, 3 and 4."""


@dataclass(frozen=True, slots=True)
class Annotator:
    """One annotator. A utility difference of 1 is one nat of log-odds."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

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
    group: str = ""
    """Name of the group of users that the annotator belongs to."""
    weights: dict[str, float] = field(default_factory=dict[str, float])
    """Weights of gold's parts for this annotator, in place of ``WEIGHTS``; parts that are not named
    have none."""
    style: Style | None = None
    """The style of replies to "open" requests that gets ``style_bias``."""
    style_bias: float = 0.0
    """Nats for a right answer in ``style``; the other styles are equally right."""
    decides_by: Literal["utility", "majority"] = "utility"
    """How two completions are compared. "majority": ``scale`` nats times the share of ``attributes``
    on which one is better minus the share on which the other one is; such preferences may be
    cyclic."""
    attributes: tuple[str, ...] = ("helpful", "honest", "concise", "polite", "brief")
    """Of ``ATTRIBUTES``, for "majority"."""
    cycles: float = 0.0
    """Share of prompts whose pairs are judged in a circle, each completion better than the next half
    of the others, whatever they say: planted cycles. It acts where pairs are asked one by one."""
    drift: float = 0.0
    """Nats by which ``severity`` grows per judged item: the mood of absolute scores."""
    fatigue: float = 0.0
    """What is added to ``carelessness`` per judged item since the last break."""
    break_every: int = 0
    """Items between breaks; 0: none."""
    words_per_second: float = 4.0
    """Reading speed."""
    decision_seconds: float = 3.0
    """Time of one decision: a choice, a score, or a place in a ranking."""

    def __post_init__(self) -> None:
        if wrong := set(self.weights) - set(WEIGHTS):
            raise ValueError(f"{self.name}: weights of {', '.join(sorted(wrong))}: no part of gold")
        if wrong := set(self.attributes) - set(ATTRIBUTES):
            raise ValueError(f"{self.name}: {', '.join(sorted(wrong))}: no attribute")
        if not 0.0 <= self.cycles <= 1.0:
            raise ValueError(f"{self.name}: cycles must lie between 0 and 1")
        if not self.attributes or self.words_per_second <= 0 or self.break_every < 0:
            raise ValueError(
                f"{self.name}: needs attributes, words_per_second > 0 and break_every >= 0"
            )

    def severity_after(self, items: Floats | Ints) -> Floats:
        """Severity after having judged so many items [N]."""
        return self.severity + self.drift * np.asarray(items, np.float64)

    def carelessness_after(self, items: Floats | Ints) -> Floats:
        """Carelessness after having judged so many items [N]; it grows since the last break, to 1 at
        most."""
        rested = np.asarray(items, np.float64)
        if self.break_every:
            rested = rested % self.break_every
        return np.minimum(1.0, self.carelessness + self.fatigue * rested)

    def after(self, items: int) -> "Annotator":
        """The annotator after having judged this many items: severity has drifted, and carelessness
        has grown since the last break, to 1 at most."""
        judged = np.array([items])
        return replace(
            self,
            severity=float(self.severity_after(judged)[0]),
            carelessness=float(self.carelessness_after(judged)[0]),
        )

    def utility(self, scene: Scene, completion: str) -> float:
        """Utility of a completion for this annotator, in nats."""
        score = gold(scene, completion)
        parts = {name: float(getattr(score, name)) for name in self.weights}
        total = sum(self.weights[n] * parts[n] for n in parts) if self.weights else score.total
        value = self.scale * total
        value += self.length_bias * len(completion.split())
        value += self.flattery_bias * ("you are right" in completion)
        if self.style is not None:
            value += self.style_bias * (style_of(scene, completion) == self.style)
        return value + self.format_bias * is_polite(completion)

    def gap(self, scene: Scene, a: str, b: str) -> float:
        """Nats by which a is preferred to b, without the position bias."""
        if self.decides_by == "utility":
            return self.utility(scene, a) - self.utility(scene, b)
        of_a, of_b = _attributes(scene, a), _attributes(scene, b)
        votes = sum(float(np.sign(of_a[x] - of_b[x])) for x in self.attributes)
        return self.scale * votes / len(self.attributes)

    def prob(self, scene: Scene, a: str, b: str) -> float:
        """P(a is preferred to b) if a is shown first."""
        gap = self.gap(scene, a, b) + self.position_bias
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
        """Rank of each completion, 0 best. By utility it is Plackett-Luce, so that each pair is
        Bradley-Terry; by majority, the order of the wins over the others, equal ones at random."""
        if rng.random() < self.carelessness:
            return [int(i) for i in rng.permutation(len(completions))]
        if self.decides_by == "majority":
            wins = [0.0] * len(completions)
            for i, a in enumerate(completions):
                for j, b in enumerate(completions[:i]):
                    wins[i if self.choose(scene, a, b, rng) == 0 else j] += 1.0
            noisy = [count + rng.random() / 2 for count in wins]
        else:
            noisy = [self.utility(scene, text) + rng.gumbel() for text in completions]
        return np.argsort(np.argsort([-x for x in noisy])).tolist()

    def strength(self, scene: Scene, better: str, worse: str) -> int:
        """How much better the preferred one of two is, 1 to 4; of a coin flip or a close call 1."""
        return 1 + sum(self.gap(scene, better, worse) >= nats for nats in STRENGTHS)

    def seconds(self, scene: Scene, completions: Sequence[str], decisions: int = 1) -> float:
        """Time to read the prompt and ``completions`` once and to decide ``decisions`` times."""
        words = len(scene.prompt.split()) + sum(len(text.split()) for text in completions)
        return words / self.words_per_second + decisions * self.decision_seconds


def is_polite(completion: str) -> bool:
    """Whether a completion has a polite opening or closing."""
    return any(p in completion for p in (*OPENINGS, *CLOSINGS))


def _polite_phrases(completion: str) -> int:
    return sum(completion.count(p) for p in (*OPENINGS, *CLOSINGS))


def _attributes(scene: Scene, completion: str) -> dict[str, float]:
    score = gold(scene, completion)
    values = {part: float(getattr(score, part)) for part in WEIGHTS}
    return {
        **values,
        "polite": float(_polite_phrases(completion)),
        "brief": -float(len(completion.split())),
    }


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


def utility_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    scene: Sequence[str],
    person: Mapping[str, Any],
    **_: Any,
) -> list[float]:
    """Utility for a person, in nats: what a group of users wants, in place of gold.

    Args:
        prompts, completions, scene: As for any reward of the sandbox.
        person: Fields of ``Annotator``.
    """
    annotator = Annotator(**person)
    return [
        annotator.utility(Scene.from_json(s), c) for s, c in zip(scene, completions, strict=True)
    ]


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
