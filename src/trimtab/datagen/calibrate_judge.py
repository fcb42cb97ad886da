"""``trimtab calibrate``: a judge's labels as people would have given them, from a few of theirs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from trimtab.config import Config
from trimtab.errors import DataError
from trimtab.feedback import records
from trimtab.feedback.comparisons import comparison_rows
from trimtab.feedback.features import (
    Method,
    Platt,
    cross_fitted,
    fit,
    quality,
    vote_features,
)
from trimtab.feedback.items import read_items
from trimtab.feedback.judgement import Judgement
from trimtab.feedback.votes import Vote, votes
from trimtab.judges.pairwise import dense
from trimtab.runs import write_atomic
from trimtab.runs.console import console


class CalibrateConfig(Config):
    """Configuration of ``trimtab calibrate``."""

    out: str = "runs/calibrate"
    """Gets items.jsonl, judgements.jsonl, rows.jsonl and summary.json."""
    items: str
    """What was judged."""
    judgements: str
    """The judge's."""
    people: str
    """Judgements of some of the items by people."""
    method: Method = "platt"
    """ "platt": a logistic curve of the judge's log-odds, with covariates; "isotonic": a rising
    step function of them alone."""
    covariates: tuple[Literal["length", "position"], ...] = ("length", "position")
    """What people and the judge may weigh differently, for "platt": the difference in words; which
    answer the judge saw first."""
    patterns: dict[str, str] = Field(default_factory=dict[str, str])
    """More of them: regular expressions by name, such as a phrase that the judge's own model likes."""
    tie: float = Field(default=0.0, ge=0.0, lt=0.5)
    """A pair within this of 1/2 is a tie."""
    audit: bool = True
    """Where a person has judged an item, the person's word stands in place of the judge's."""
    folds: int = Field(default=5, ge=2)
    """For the figures: each label is predicted by a fit that has not seen it."""

    @model_validator(mode="after")
    def _fits(self) -> CalibrateConfig:
        if self.method == "isotonic" and (
            self.patterns or ("covariates" in self.model_fields_set and self.covariates)
        ):
            raise ValueError("isotonic looks at the judge's log-odds alone; covariates need platt")
        return self


def main(config: CalibrateConfig) -> dict[str, Any]:
    """Fit on what both have judged, and turn all of the judge's verdicts.

    Returns:
        ``shared`` items, ``before`` and ``after`` (accuracy, ece, log_loss against people; after
        is cross-fitted), ``weights`` of the fit with standard errors (nats), ``turned`` (share of
        pairs whose winner changed), ``audited`` items and ``rows``.

    Raises:
        DataError: fewer items are judged by both than there are folds, or an id is unknown.
    """
    c = config
    items = {i.id: i for i in read_items(c.items)}
    judged = [j for j in records.read_judgements(c.judgements) if j.ranks is not None]
    people: dict[str, Judgement] = {}
    for j in records.read_judgements(c.people):
        if j.ranks is not None:
            people.setdefault(j.item, j)
    for path, mine in ((c.judgements, judged), (c.people, list(people.values()))):
        unknown = next((j.item for j in mine if j.item not in items), None)
        if unknown is not None:
            raise DataError(f"{path}: item {unknown!r} is not in {c.items}; give the items judged")
    if len({j.item for j in judged}) < len(judged):
        raise DataError(
            f"{c.judgements}: has items judged more than once; give one judge's labels, or the "
            "majority.jsonl of a panel"
        )
    covariates = c.covariates if c.method == "platt" else ()
    cast = votes(judged)
    features = vote_features(cast, items, covariates, c.patterns)
    both = [i for i, v in enumerate(cast) if v.judgement.item in people]
    shared = len({cast[i].judgement.item for i in both})
    if shared < c.folds:
        raise DataError(
            f"{c.people}: people and judge share {shared} items, too few to fit {c.folds} folds; "
            "have more of the items judged by people"
        )
    x = np.array([features[i] for i in both])
    y = np.array([_chosen(people[cast[i].judgement.item], cast[i]) for i in both])
    after = cross_fitted(c.method, x, y, [cast[i].judgement.item for i in both], c.folds)
    found = fit(c.method, x, y)
    probs = found(np.array(features))
    out = Path(c.out)
    out.mkdir(parents=True, exist_ok=True)
    labels, turned = _relabelled(c, judged, cast, probs.tolist())
    if c.audit:
        labels = [people.get(j.item, j) for j in labels]
    rows = comparison_rows(items, labels, ties=False)
    records.write(out / records.ITEMS, items.values())
    records.write(out / records.JUDGEMENTS, labels)
    records.write(out / "rows.jsonl", rows)
    names = ["judge", *covariates, *c.patterns]
    figures: dict[str, Any] = {
        "shared": shared,
        "pairs": len(cast),
        "before": quality(np.array([cast[i].prob for i in both]), y),
        "after": quality(after, y),
        "turned": turned / len(cast),
        "audited": sum(j.item in people for j in labels) if c.audit else 0,
        "rows": len(rows),
        "undecided": len(labels) - len(rows),
    }
    if isinstance(found, Platt):
        figures["weights"] = {
            n: {"mean": w, "error": e}
            for n, w, e in zip(names, found.weights, found.errors, strict=True)
        }
    write_atomic(out / "summary.json", json.dumps(figures, indent=1).encode())
    b, a = figures["before"], figures["after"]
    console.print(
        f"[bold]calibrate[/bold]: on {shared} items, accuracy {b['accuracy']:.3f} -> "
        f"{a['accuracy']:.3f}, ECE {b['ece']:.3f} -> {a['ece']:.3f}; "
        f"{figures['turned']:.1%} of {len(cast)} verdicts turned, {figures['audited']} items by "
        f"people -> {c.out}/rows.jsonl"
    )
    for name, w in figures.get("weights", {}).items():
        console.print(f"  {name:<10} {w['mean']:+.3f} ± {1.96 * w['error']:.3f} nats")
    return figures


def _chosen(person: Judgement, vote: Vote) -> float:
    """1 where the person prefers completion a of the pair, 0 where b, 1/2 for a tie."""
    assert person.ranks is not None
    a, b = (person.ranks[k] for k in vote.pair[1:])
    return 0.5 if a == b else float(a < b)


def _relabelled(
    c: CalibrateConfig, judged: Sequence[Judgement], cast: Sequence[Vote], probs: Sequence[float]
) -> tuple[list[Judgement], int]:
    """The judgements with ranks by calibrated probabilities, and how many pairs changed sides."""
    worth: dict[str, list[float]] = {j.item: [0.0] * len(j.ranks or ()) for j in judged}
    turned = 0
    single: dict[str, float] = {}
    for vote, p in zip(cast, probs, strict=True):
        item, a, b = vote.pair
        share = 0.5 if abs(p - 0.5) <= c.tie else float(p > 0.5)
        worth[item][a] += share
        worth[item][b] += 1 - share
        turned += share != (0.5 if vote.prob == 0.5 else float(vote.prob > 0.5))
        single[item] = p
    labels = [
        j.model_copy(
            update={
                "annotator": f"{j.annotator}+{c.method}",
                "ranks": dense(worth[j.item]),
                "prob": single[j.item] if len(worth[j.item]) == 2 else None,
                "detail": {**j.detail, "judged": list(j.ranks or ())},
            }
        )
        for j in judged
    ]
    return labels, turned
