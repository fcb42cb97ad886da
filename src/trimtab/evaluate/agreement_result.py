"""Results of ``trimtab agreement``, as its JSON has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from trimtab.stats.uncertainty import Estimate, wilson


@dataclass(frozen=True, slots=True)
class Figure:
    """A value with its 95 % interval, None where the interval is not finite."""

    value: float
    low: float | None
    high: float | None


F = TypeVar("F", bound=Figure)


def figure(kind: Callable[..., F], estimate: Estimate, **fields: int) -> F | None:
    """``estimate`` as a ``kind`` of figure with more ``fields``; None where it is not finite."""
    value, low, high = estimate
    if not np.isfinite(value):
        return None
    if not (np.isfinite(low) and np.isfinite(high)):
        return kind(value, None, None, **fields)
    return kind(value, low, high, **fields)


@dataclass(frozen=True, slots=True)
class FleissKappa(Figure):
    """Fleiss' kappa over the pairs with the most common number of labels."""

    raters: int
    """Labels per pair."""
    units: int
    """Pairs."""


@dataclass(frozen=True, slots=True)
class MeanKappa(Figure):
    """Mean of Cohen's kappa over pairs of annotators, weighted by the pairs that both judged."""

    pairs: int
    """Pairs of annotators."""


@dataclass(frozen=True, slots=True)
class ScoreAlpha(Figure):
    """Krippendorff's alpha of absolute scores on one rubric."""

    answers: int
    """Completions that two or more annotators scored."""


@dataclass(frozen=True, slots=True)
class Share:
    """A share with Wilson's 95 % interval."""

    value: float
    low: float
    high: float
    n: float

    @classmethod
    def of(cls, hits: Sequence[float]) -> Share | None:
        """Of values 1, 0 or 0.5; None without any."""
        if not hits:
            return None
        return cls(sum(hits) / len(hits), *wilson(sum(hits), len(hits)), float(len(hits)))


@dataclass(frozen=True, slots=True)
class GroupAgreement:
    """Agreement within a group of annotators."""

    units: int
    """Pairs of completions that two or more of the group judged."""
    items: int = 0
    percent: Figure | None = None
    """Share of equal labels."""
    alpha: Figure | None = None
    fleiss: FleissKappa | None = None


@dataclass(frozen=True, slots=True)
class PairKappa:
    """Cohen's kappa of two annotators."""

    a: str
    b: str
    units: int
    """Pairs of completions that both judged."""
    kind: str
    """"person-person", "judge-person" or "judge-judge"."""
    kappa: Figure | None


@dataclass(frozen=True, slots=True)
class Kappas:
    """Cohen's kappa of all pairs of annotators, and its means by kind."""

    means: dict[str, MeanKappa | None]
    pairs: list[PairKappa]


@dataclass(frozen=True, slots=True)
class Drift:
    """Agreement with the others in the later half minus that in the earlier half."""

    value: float
    low: float
    high: float
    p: float
    significant: bool = False
    """Also after correction for the number of annotators."""


@dataclass(frozen=True, slots=True)
class BothOrders:
    """Choices of one annotator on pairs shown in both orders."""

    consistency: float
    """Share with the same winner."""
    low: float
    high: float
    bias: float
    """P(the completion shown first wins) - 1/2."""
    n: float


@dataclass(frozen=True, slots=True)
class Cycles:
    """Cyclic triads among the completions of each prompt."""

    cycles: float
    triples: float
    """Triples with three decided pairs."""
    rate: float | None
    zeta: float | None
    """Kendall's consistency, mean over the prompts whose tournament is complete."""


@dataclass(frozen=True, slots=True)
class ItemCycles:
    """An item and the number of cycles that its pairs are part of."""

    item: str
    cycles: int


@dataclass(frozen=True, slots=True)
class Contradictions:
    """Cycles of the majority of all annotators, and the items in most cycles."""

    all: Cycles | None
    items: list[ItemCycles]


@dataclass(frozen=True, slots=True)
class Bias:
    """One bias of one annotator."""

    coef: float
    """Nats of log-odds."""
    low: float
    high: float
    p: float
    control: Literal["gold", "others"]
    """What quality is controlled by: gold scores, or the other annotators on the same pairs."""
    n: int
    words: float | None = None
    """For "length": the standard deviation of the difference in words, which ``coef`` is per."""
    significant: bool = False
    """Also after correction for every bias tested on the panel."""

    @property
    def figure(self) -> Figure:
        """The coefficient with its interval."""
        return Figure(self.coef, self.low, self.high)


@dataclass(frozen=True, slots=True)
class AnnotatorResult:
    """All figures of one annotator; None where there are too few judgements."""

    who: str
    """"person" or "judge"."""
    judgements: int
    skipped: int
    failed: int
    flagged: int
    ties: float | None
    seconds: float | None
    accuracy: Figure | None
    with_people: Share | None
    gold: Share | None
    steady: Share | None
    orders: BothOrders | None
    drift: Drift | None
    cycles: Cycles | None
    bias: dict[str, Bias]
    rates: dict[str, Share]
    """How often the completion with a property wins, quality not controlled."""


@dataclass(frozen=True, slots=True)
class JudgeCalibration:
    """Calibration of a judge's probabilities, before and after a fit to people's labels."""

    pairs: int
    method: str
    ece_before: float
    ece_after: float
    log_loss_before: float
    log_loss_after: float
    bins_before: list[dict[str, float]]
    bins_after: list[dict[str, float]]
    fit: dict[str, float | list[float]]


@dataclass(frozen=True, slots=True)
class PairRef:
    """A pair of completions of an item, with P(the judge is wrong) where it is known."""

    item: str
    answers: tuple[int, int]
    doubt: float | None = None


@dataclass(frozen=True, slots=True)
class AuditPlan:
    """What people checked of a judge's labels, the bound that follows, and what to check next."""

    labels: int
    checked: int
    wrong: int
    rate: float | None
    bound: float
    """Upper 95 % bound of the error rate."""
    target: float
    checks_to_target: int | None
    random: list[PairRef]
    """Drawn at random; checking these lowers the bound."""
    doubtful: list[PairRef]
    """Most likely wrong; checking these corrects labels but says nothing about the rest."""
    errors: list[PairRef]


@dataclass(frozen=True, slots=True)
class JudgeResult:
    """How far a judge's labels can be trusted."""

    calibration: JudgeCalibration | None
    audit: AuditPlan


@dataclass(frozen=True, slots=True)
class Rating:
    """Strength of a model."""

    elo: float
    low: float
    high: float
    wins: float
    games: float


@dataclass(frozen=True, slots=True)
class Strengths:
    """Bradley-Terry strengths of the compared models."""

    models: dict[str, Rating]
    connected: bool
    cycles: list[list[str]]
    zeta: float | None


@dataclass(frozen=True, slots=True)
class Counts:
    """Size of the data."""

    items: int
    judgements: int
    people: int
    judges: int
    pairs: int
    gold: int
    replaced: int
    dimension: str | None


@dataclass(frozen=True, slots=True)
class AgreementResult:
    """Every figure of ``trimtab agreement``."""

    data: Counts
    agreement: dict[str, GroupAgreement]
    """By group: "all", "people", "judges"."""
    kappa: Kappas
    dimensions: dict[str, GroupAgreement]
    scores: dict[str, ScoreAlpha | None]
    annotators: dict[str, AnnotatorResult]
    contradictions: Contradictions
    strengths: Strengths | None
    judges: dict[str, JudgeResult]
