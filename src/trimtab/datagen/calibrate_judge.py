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
from trimtab.feedback.features import (
    Method,
    Pair,
    Platt,
    cross_fitted,
    features_of,
    fit,
    quality,
)
from trimtab.feedback.items import label_rows, read_items, read_judgements, write_lines
from trimtab.feedback.judgement import Judgement
from trimtab.judges.pairwise import dense
from trimtab.runs import write_atomic
from trimtab.runs.console import console


class CalibrateConfig(Config):
    """Configuration of ``trimtab calibrate``."""

    out: str = "runs/calibrate"
    """Gets judgements.jsonl, rows.jsonl and summary.json."""
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
    judged = [j for j in read_judgements(c.judgements) if j.ranks is not None]
    people: dict[str, Judgement] = {}
    for j in read_judgements(c.people):
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
    pairs = features_of(items, judged, covariates, c.patterns)
    both = [p for p in pairs if p.item in people]
    shared = len({p.item for p in both})
    if shared < c.folds:
        raise DataError(
            f"{c.people}: people and judge share {shared} items, too few to fit {c.folds} folds; "
            "have more of the items judged by people"
        )
    x = np.array([p.features for p in both])
    y = np.array([_chosen(people[p.item], p) for p in both])
    after = cross_fitted(c.method, x, y, [p.item for p in both], c.folds)
    found = fit(c.method, x, y)
    probs = found(np.array([p.features for p in pairs]))
    out = Path(c.out)
    out.mkdir(parents=True, exist_ok=True)
    labels, turned = _relabelled(c, judged, pairs, probs.tolist())
    if c.audit:
        labels = [people.get(j.item, j) for j in labels]
    rows, undecided = label_rows(list(items.values()), labels)
    write_lines(out / "judgements.jsonl", labels)
    write_lines(out / "rows.jsonl", rows)
    names = ["judge", *covariates, *c.patterns]
    figures: dict[str, Any] = {
        "shared": shared,
        "pairs": len(pairs),
        "before": quality(np.array([p.judged for p in both]), y),
        "after": quality(after, y),
        "turned": turned / len(pairs),
        "audited": sum(j.item in people for j in labels) if c.audit else 0,
        "rows": len(rows),
        "undecided": undecided,
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
        f"{figures['turned']:.1%} of {len(pairs)} verdicts turned, {figures['audited']} items by "
        f"people -> {c.out}/rows.jsonl"
    )
    for name, w in figures.get("weights", {}).items():
        console.print(f"  {name:<10} {w['mean']:+.3f} ± {1.96 * w['error']:.3f} nats")
    return figures


def _chosen(person: Judgement, p: Pair) -> float:
    """1 where the person prefers i, 0 where j."""
    assert person.ranks is not None
    a, b = person.ranks[p.i], person.ranks[p.j]
    return 0.5 if a == b else float(a < b)


def _relabelled(
    c: CalibrateConfig, judged: Sequence[Judgement], pairs: Sequence[Pair], probs: Sequence[float]
) -> tuple[list[Judgement], int]:
    """The judgements with ranks by calibrated probabilities, and how many pairs changed sides."""
    worth: dict[str, list[float]] = {j.item: [0.0] * len(j.ranks or ()) for j in judged}
    turned = 0
    single: dict[str, float] = {}
    for pair, p in zip(pairs, probs, strict=True):
        share = 0.5 if abs(p - 0.5) <= c.tie else float(p > 0.5)
        worth[pair.item][pair.i] += share
        worth[pair.item][pair.j] += 1 - share
        turned += share != (0.5 if pair.judged == 0.5 else float(pair.judged > 0.5))
        single[pair.item] = p
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
