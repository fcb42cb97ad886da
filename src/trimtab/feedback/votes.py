"""Judgements as votes on pairs of answers: what every statistic starts from."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trimtab.feedback.judgement import Item, Judgement
from trimtab.feedback.records import Records

FIRST, TIE, SECOND = 0, 1, 2
"""What a vote may say of the answers a < b of an item: a is better, neither, b is better."""
Unit = tuple[str, int, int]
"""Item and two of its answers."""


@dataclass(frozen=True, slots=True)
class Vote:
    """What one judgement says of one pair of answers."""

    unit: Unit
    said: int
    """FIRST, TIE or SECOND."""
    led: bool
    """Whether answer a stood before b when shown."""
    judgement: Judgement

    @property
    def annotator(self) -> str:
        """Who."""
        return self.judgement.annotator


def ranks_of(j: Judgement, dimension: str | None) -> tuple[int, ...] | None:
    """Overall ranks, or those of one dimension."""
    if j.status != "ok":
        return None
    return j.ranks if dimension is None else j.dimensions.get(dimension)


def votes(judgements: Iterable[Judgement], dimension: str | None = None) -> list[Vote]:
    """Every pair of every ranking; what was skipped or failed says nothing."""
    found: list[Vote] = []
    for j in judgements:
        ranks = ranks_of(j, dimension)
        if ranks is None:
            continue
        place = {answer: p for p, answer in enumerate(j.shown or range(len(ranks)))}
        for a in range(len(ranks)):
            for b in range(a + 1, len(ranks)):
                said = TIE if ranks[a] == ranks[b] else FIRST if ranks[a] < ranks[b] else SECOND
                found.append(Vote((j.item, a, b), said, place[a] < place[b], j))
    return found


def settled(found: Iterable[Vote]) -> dict[Unit, dict[str, int]]:
    """One vote of each annotator on each pair. Several that differ (both orders of a judge) are a
    tie, as for any judge that contradicts itself; repeats, which ask again, are left out."""
    all_of: dict[Unit, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for v in found:
        if v.judgement.kind != "repeat":
            all_of[v.unit][v.annotator].add(v.said)
    return {
        unit: {who: said.pop() if len(said) == 1 else TIE for who, said in mine.items()}
        for unit, mine in all_of.items()
    }


def majority(said: Sequence[int]) -> int | None:
    """FIRST or SECOND by most votes, TIE where as many say either; None without votes."""
    if not said:
        return None
    lead = sum(s == FIRST for s in said) - sum(s == SECOND for s in said)
    return FIRST if lead > 0 else SECOND if lead < 0 else TIE


def counts(
    by_unit: Mapping[Unit, Mapping[str, int]], names: set[str], at_least: int = 2
) -> tuple[list[Unit], npt.NDArray[np.float64]]:
    """How many of ``names`` said each thing of each pair [U, 3]; pairs with too few left out."""
    units: list[Unit] = []
    rows: list[npt.NDArray[np.float64]] = []
    for unit, mine in by_unit.items():
        said = [s for who, s in mine.items() if who in names]
        if len(said) >= at_least:
            units.append(unit)
            rows.append(np.bincount(said, minlength=3).astype(np.float64))
    return units, np.array(rows).reshape(-1, 3)


def by_item(units: Sequence[Unit], parts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sums over the pairs of each item [I, ...]: items are what the bootstrap draws."""
    place: dict[str, int] = {}
    owner = np.array([place.setdefault(u[0], len(place)) for u in units], dtype=np.intp)
    out = np.zeros((len(place), *parts.shape[1:]))
    np.add.at(out, owner, parts)
    return out


def prompt_key(item: Item) -> str:
    """Equal for items of one prompt."""
    return json.dumps(item.prompt, sort_keys=True, ensure_ascii=False)


def gold_gaps(records: Records) -> dict[Unit, float]:
    """Where ``who`` is "gold": the score of a minus that of b, or, without scores, 1, 0 or -1."""
    gaps: dict[Unit, float] = {}
    for j in records.judgements:
        if j.who != "gold":
            continue
        scores = next(iter(j.scores.values()), None)
        for v in votes([j]):
            _, a, b = v.unit
            gaps[v.unit] = float(1 - v.said) if scores is None else scores[a] - scores[b]
    return gaps
