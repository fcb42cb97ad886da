"""``trimtab calibrate``: correct a judge's labels with a few human labels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import regex
from pydantic import Field, field_validator, model_validator

from trimtab.config import Config
from trimtab.datagen.output import write_summary
from trimtab.errors import DataError
from trimtab.feedback import records
from trimtab.feedback.comparisons import comparison_rows
from trimtab.feedback.features import vote_features
from trimtab.feedback.items import read_items
from trimtab.feedback.judgement import Item, Judgement
from trimtab.feedback.votes import Vote, votes
from trimtab.stats.calibrate import (
    Method,
    Platt,
    assign_folds,
    cross_fit,
    fit_symmetric,
    quality,
)
from trimtab.stats.ranking import ranks_by_worth

log = logging.getLogger(__name__)


class CalibrateConfig(Config):
    """Configuration of ``trimtab calibrate``."""

    out: str = "runs/calibrate"
    """Gets items.jsonl, judgements.jsonl, rows.jsonl and summary.json."""
    items: str
    """The items that were judged."""
    judgements: str
    """The judge's labels."""
    people: str
    """Human labels of some of the items."""
    method: Method = "platt"
    """ "platt": a logistic curve of the judge's log-odds with covariates; "isotonic": a monotone
    step function of the log-odds alone."""
    covariates: tuple[Literal["length", "position"], ...] = ("length", "position")
    """Biases that "platt" corrects: the difference in words; which completion the judge saw first."""
    patterns: dict[str, str] = Field(default_factory=dict[str, str])
    """Further covariates: regular expressions by name, such as a phrase that the judge favours."""
    tie: float = Field(default=0.0, ge=0.0, lt=0.5)
    """A calibrated probability within this of 1/2 is a tie."""
    audit: bool = True
    """Use the human label of every item that has one, in place of the judge's."""
    folds: int = Field(default=5, ge=2)
    """Folds of the cross-fitted "after" metrics."""

    @field_validator("patterns")
    @classmethod
    def _compile(cls, patterns: dict[str, str]) -> dict[str, str]:
        for name, pattern in patterns.items():
            try:
                regex.compile(pattern)
            except regex.error as error:
                raise ValueError(
                    f"{name}: {pattern!r} is not a regular expression: {error}"
                ) from None
        return patterns

    @model_validator(mode="after")
    def _fits(self) -> CalibrateConfig:
        if self.method == "isotonic" and (
            self.patterns or ("covariates" in self.model_fields_set and self.covariates)
        ):
            raise ValueError("isotonic looks at the judge's log-odds alone; covariates need platt")
        return self


@dataclass(frozen=True, slots=True)
class Weight:
    """A fitted weight and its standard error, in nats."""

    mean: float
    error: float


@dataclass(frozen=True, slots=True)
class CalibrateSummary:
    """summary.json of ``trimtab calibrate``."""

    shared: int
    """Items that the judge and people have labelled."""
    pairs: int
    before: dict[str, float]
    """accuracy, ece, log_loss of the judge against people."""
    after: dict[str, float]
    """The same for the calibrated judge, cross-fitted."""
    flipped: float
    """Share of pairs whose winner changed."""
    audited: int
    """Items with a human label in place of the judge's."""
    rows: int
    undecided: int
    weights: dict[str, Weight]
    """Of "judge" and each covariate; empty for "isotonic"."""


def _read(
    c: CalibrateConfig,
) -> tuple[dict[str, Item], list[Judgement], dict[str, Judgement]]:
    """The items, the judge's labels, and the first human label of an item."""
    items = {i.id: i for i in read_items(c.items)}
    judge = [j for j in records.read_judgements(c.judgements) if j.ranks is not None]
    people: dict[str, Judgement] = {}
    for j in records.read_judgements(c.people):
        if j.ranks is not None:
            people.setdefault(j.item, j)
    for path, labels in ((c.judgements, judge), (c.people, people.values())):
        unknown = next((j.item for j in labels if j.item not in items), None)
        if unknown is not None:
            raise DataError(
                f"{path}: item {unknown!r} is not in {c.items}; pass the items that were judged"
            )
    if len({j.item for j in judge}) < len(judge):
        raise DataError(
            f"{c.judgements}: some items are judged more than once; pass the labels of one judge, "
            "or the majority.jsonl of a panel"
        )
    return items, judge, people


def main(config: CalibrateConfig) -> CalibrateSummary:
    """Fit on the items that both have labelled, and relabel everything that the judge labelled.

    Raises:
        DataError: fewer items are labelled by both than there are folds, an id is unknown, or a
            pattern takes too long.
    """
    c = config
    items, judge, people = _read(c)
    covariates = c.covariates if c.method == "platt" else ()
    cast = votes(judge)
    try:
        features = np.array(vote_features(cast, items, covariates, c.patterns))
    except TimeoutError as error:
        raise DataError(
            f"patterns: a search takes too long ({error}); some patterns take exponential time, as one with "
            "a repeated group that repeats itself, so write a simpler one"
        ) from None
    both = [i for i, v in enumerate(cast) if v.judgement.item in people]
    owners = [cast[i].judgement.item for i in both]
    shared = len(set(owners))
    if shared < c.folds:
        raise DataError(
            f"{c.people}: people and judge share {shared} items, too few to fit {c.folds} folds; "
            "have people label more of the items"
        )
    x = features[both]
    y = np.array([_human_label(people[o], cast[i]) for o, i in zip(owners, both, strict=True)])
    fit_method = partial(fit_symmetric, c.method)
    after = cross_fit(fit_method, x, y, assign_folds(owners, c.folds))
    fit = fit_method(x, y)
    calibrated, flips = _relabel(c, judge, cast, fit(features).tolist())
    if c.audit:
        calibrated = [people.get(j.item, j) for j in calibrated]
    rows = comparison_rows(items, calibrated, ties=False)
    out = Path(c.out)
    records.write(out / records.ITEMS, items.values())
    records.write(out / records.JUDGEMENTS, calibrated)
    records.write(out / "rows.jsonl", rows)
    weights: dict[str, Weight] = {}
    if isinstance(fit, Platt):
        names = ["judge", *covariates, *c.patterns]
        weights = dict(zip(names, map(Weight, fit.weights, fit.errors), strict=True))
    s = CalibrateSummary(
        shared=shared,
        pairs=len(cast),
        before=quality(np.array([cast[i].prob for i in both]), y)._asdict(),
        after=quality(after, y)._asdict(),
        flipped=flips / len(cast),
        audited=sum(j.item in people for j in calibrated) if c.audit else 0,
        rows=len(rows),
        undecided=len(calibrated) - len(rows),
        weights=weights,
    )
    write_summary(out, s)
    log.info(
        f"calibrate: on {shared} items, accuracy {s.before['accuracy']:.3f} -> "
        f"{s.after['accuracy']:.3f}, ECE {s.before['ece']:.3f} -> {s.after['ece']:.3f}; "
        f"{s.flipped:.1%} of {s.pairs} verdicts changed, "
        f"{s.audited} items labelled by people -> {c.out}/rows.jsonl"
    )
    for name, w in weights.items():
        log.info(f"  {name:<10} {w.mean:+.3f} ± {1.96 * w.error:.3f} nats")
    return s


def _human_label(person: Judgement, vote: Vote) -> float:
    """1 if the person prefers completion a of the pair, 0 for b, 1/2 for a tie."""
    assert person.ranks is not None
    a, b = (person.ranks[k] for k in vote.pair[1:])
    return 0.5 if a == b else float(a < b)


def _relabel(
    c: CalibrateConfig, judge: Sequence[Judgement], cast: Sequence[Vote], probs: Sequence[float]
) -> tuple[list[Judgement], int]:
    """The judgements with ranks by calibrated probabilities, and how many pairs changed winner."""
    wins: dict[str, list[float]] = {j.item: [0.0] * len(j.ranks or ()) for j in judge}
    flips = 0
    last_prob: dict[str, float] = {}
    for vote, p in zip(cast, probs, strict=True):
        item, a, b = vote.pair
        share = 0.5 if abs(p - 0.5) <= c.tie else float(p > 0.5)
        wins[item][a] += share
        wins[item][b] += 1 - share
        flips += share != (0.5 if vote.prob == 0.5 else float(vote.prob > 0.5))
        last_prob[item] = p
    labels = [
        j.model_copy(
            update={
                "annotator": f"{j.annotator}+{c.method}",
                "ranks": ranks_by_worth(wins[j.item]),
                "prob": last_prob[j.item] if len(wins[j.item]) == 2 else None,
                "detail": {**j.detail, "judged": list(j.ranks or ())},
            }
        )
        for j in judge
    ]
    return labels, flips
