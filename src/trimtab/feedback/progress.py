"""How far labelling is and how well people agree, from the judgements that stand."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from trimtab.feedback.judgement import Judgement
from trimtab.stats.reliability import cohen_kappa


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two annotators on what both judged."""

    a: str
    b: str
    n: int
    """Pairs of answers both gave a verdict on."""
    share: float
    """On which the verdict (first, second, tie) is the same."""
    kappa: float | None
    """Cohen's; None where chance alone would agree always."""


@dataclass(frozen=True, slots=True)
class Person:
    """One annotator's work."""

    name: str
    judged: int
    skipped: int
    flagged: int
    ties: float | None
    """Share of pairs of answers left tied."""
    first: float | None
    """Share of untied pairs in which the answer shown first won."""
    seconds: float | None
    """Median of an item."""
    gold: tuple[int, int]
    """(right, all) pairs of gold items."""
    repeats: tuple[int, int]
    """(same, all) pairs of repeated items."""


Verdicts = dict[tuple[str, int, int], int]
"""By item and answers i < j: -1 i is better, 1 j is, 0 tie."""


def verdicts(judgements: Sequence[Judgement]) -> Verdicts:
    """Every pair of answers that the judgements rank."""
    found: Verdicts = {}
    for j in judgements:
        for a, b in itertools.combinations(range(len(j.ranks or ())), 2):
            assert j.ranks is not None
            found[j.item, a, b] = (j.ranks[a] > j.ranks[b]) - (j.ranks[a] < j.ranks[b])
    return found


def cohen(a: Sequence[int], b: Sequence[int]) -> tuple[float, float | None]:
    """Share of equal verdicts (-1, 0, 1), and Cohen's kappa; None where chance alone would agree."""
    table = np.zeros((3, 3))
    np.add.at(table, (np.asarray(a) + 1, np.asarray(b) + 1), 1)
    kappa = float(cohen_kappa(table))
    return float(np.trace(table) / len(a)), None if math.isnan(kappa) else kappa


def agreement(judgements: Sequence[Judgement]) -> list[Agreement]:
    """Every two annotators who judged an item in common; repeats left out."""
    mine: defaultdict[str, list[Judgement]] = defaultdict(list)
    for j in judgements:
        if j.kind != "repeat":
            mine[j.annotator].append(j)
    said = {name: verdicts(js) for name, js in sorted(mine.items())}
    found: list[Agreement] = []
    for a, b in itertools.combinations(said, 2):
        both = said[a].keys() & said[b].keys()
        if both:
            keys = sorted(both)
            share, kappa = cohen([said[a][k] for k in keys], [said[b][k] for k in keys])
            found.append(Agreement(a, b, len(keys), share, kappa))
    return found


def person(
    name: str, judgements: Sequence[Judgement], gold: Mapping[str, tuple[int, ...]]
) -> Person:
    """What is known of an annotator; ``judgements`` may hold others' too."""
    mine = [j for j in judgements if j.annotator == name]
    judged = [j for j in mine if j.status == "ok"]
    plain = [j for j in judged if j.kind == "plain"]
    said = verdicts(plain)
    untied = [(j, w, l) for j in plain for w, l in j.pairs()]
    first = [j.shown.index(w) < j.shown.index(l) for j, w, l in untied if j.shown is not None]
    known = verdicts([Judgement(item=i, annotator="gold", ranks=r) for i, r in gold.items()])
    tested = verdicts([j for j in judged if j.kind == "gold"])
    again = verdicts([j for j in judged if j.kind == "repeat"])
    hits = [tested[k] == known[k] for k in tested if known.get(k)]
    same = [again[k] == said[k] for k in again if k in said]
    seconds = [j.seconds for j in judged if j.seconds is not None]
    return Person(
        name,
        len(judged),
        sum(j.status == "skip" for j in mine),
        sum(j.flagged for j in mine),
        sum(v == 0 for v in said.values()) / len(said) if said else None,
        sum(first) / len(first) if first else None,
        median(seconds) if seconds else None,
        (sum(hits), len(hits)),
        (sum(same), len(same)),
    )
