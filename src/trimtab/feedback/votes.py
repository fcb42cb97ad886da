"""Judgements as votes on pairs of completions: the input of every statistic."""

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import numpy.typing as npt

from trimtab.feedback.judgement import Item, Judgement
from trimtab.feedback.records import Records
from trimtab.stats.reliability import cohen_kappa

FIRST, TIE, SECOND = 0, 1, 2
"""Choices on completions a < b of an item: a is better, neither, b is better."""
Pair = tuple[str, int, int]
"""Id of an item and the indices a < b of two of its completions."""
Choices = Mapping[Pair, Mapping[str, int]]
"""By pair and annotator: FIRST, TIE or SECOND."""


@dataclass(frozen=True, slots=True)
class Vote:
    """One judgement's choice on one pair of completions."""

    pair: Pair
    choice: int
    """FIRST, TIE or SECOND."""
    a_shown_first: bool
    """Whether completion a was shown before b."""
    judgement: Judgement

    @property
    def annotator(self) -> str:
        """Name of the annotator."""
        return self.judgement.annotator

    @property
    def prob(self) -> float:
        """P(a is better): the annotator's probability if it gave one, otherwise 1, 1/2 or 0."""
        if self.judgement.prob is not None and len(self.judgement.ranks or ()) == 2:
            return self.judgement.prob
        return 1.0 - self.choice / 2


def ranks_of(j: Judgement, dimension: str | None) -> tuple[int, ...] | None:
    """Overall ranks [K], or those of one dimension; None without a verdict."""
    if j.status != "ok":
        return None
    return j.ranks if dimension is None else j.dimensions.get(dimension)


def votes(judgements: Iterable[Judgement], dimension: str | None = None) -> list[Vote]:
    """Every pair of every ranking; skipped and failed judgements give none."""
    result: list[Vote] = []
    for j in judgements:
        ranks = ranks_of(j, dimension)
        if ranks is None:
            continue
        position = {index: p for p, index in enumerate(j.order or range(len(ranks)))}
        for a, b in itertools.combinations(range(len(ranks)), 2):
            choice = TIE if ranks[a] == ranks[b] else FIRST if ranks[a] < ranks[b] else SECOND
            result.append(Vote((j.item, a, b), choice, position[a] < position[b], j))
    return result


def votes_by_pair(cast: Iterable[Vote]) -> dict[Pair, dict[str, int]]:
    """One choice per annotator and pair. Contradicting votes of one annotator (a judge asked in
    both orders) count as a tie; repeats are omitted."""
    choices: dict[Pair, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for v in cast:
        if v.judgement.kind != "repeat":
            choices[v.pair][v.annotator].add(v.choice)
    return {
        pair: {name: next(iter(c)) if len(c) == 1 else TIE for name, c in by_name.items()}
        for pair, by_name in choices.items()
    }


def majority(choices: Sequence[int]) -> int | None:
    """FIRST or SECOND, whichever has more votes, TIE if equally many; None without votes."""
    if not choices:
        return None
    lead = sum(c == FIRST for c in choices) - sum(c == SECOND for c in choices)
    return FIRST if lead > 0 else SECOND if lead < 0 else TIE


def vote_counts(
    choices: Choices, names: set[str], at_least: int = 2
) -> tuple[list[Pair], npt.NDArray[np.float64]]:
    """Votes of ``names`` per pair and choice [U, 3]; pairs with fewer than ``at_least`` are omitted."""
    pairs: list[Pair] = []
    rows: list[npt.NDArray[np.float64]] = []
    for pair, by_name in choices.items():
        cast = [c for name, c in by_name.items() if name in names]
        if len(cast) >= at_least:
            pairs.append(pair)
            rows.append(np.bincount(cast, minlength=3).astype(np.float64))
    return pairs, np.array(rows).reshape(-1, 3)


def sum_by_item(pairs: Sequence[Pair], parts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sums over the pairs of each item [I, ...]: the bootstrap resamples items."""
    place: dict[str, int] = {}
    owner = np.array([place.setdefault(p[0], len(place)) for p in pairs], dtype=np.intp)
    out = np.zeros((len(place), *parts.shape[1:]))
    np.add.at(out, owner, parts)
    return out


def prompt_key(item: Item) -> str:
    """Equal for items of one prompt."""
    return json.dumps(item.prompt, sort_keys=True, ensure_ascii=False)


def gold_gaps(records: Records) -> dict[Pair, float]:
    """For judgements of ``who`` "gold": the score of a minus that of b, or, without scores, 1, 0 or
    -1."""
    gaps: dict[Pair, float] = {}
    for j in records.judgements:
        if j.who != "gold":
            continue
        scores = next(iter(j.scores.values()), None)
        for v in votes([j]):
            _, a, b = v.pair
            gaps[v.pair] = float(1 - v.choice) if scores is None else scores[a] - scores[b]
    return gaps


# --- progress of labelling


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of two annotators on the pairs that both judged."""

    a: str
    b: str
    n: int
    """Pairs that both judged."""
    share: float
    """Share of them with the same choice (first, second, tie)."""
    kappa: float | None
    """Cohen's kappa; None where chance alone would always agree."""


@dataclass(frozen=True, slots=True)
class Person:
    """One annotator's work."""

    name: str
    judged: int
    skipped: int
    flagged: int
    ties: float | None
    """Share of pairs judged a tie."""
    first: float | None
    """Share of untied pairs in which the completion shown first won."""
    seconds: float | None
    """Median per item."""
    gold: tuple[int, int]
    """(correct, all) pairs of gold items."""
    repeats: tuple[int, int]
    """(same choice, all) pairs of repeated items."""


def _choices(judgements: Iterable[Judgement]) -> dict[Pair, int]:
    return {v.pair: v.choice for v in votes(judgements)}


def cohen(a: Sequence[int], b: Sequence[int]) -> tuple[float, float | None]:
    """Share of equal choices, and Cohen's kappa; None where chance alone would always agree."""
    table = np.zeros((3, 3))
    np.add.at(table, (np.asarray(a), np.asarray(b)), 1)
    kappa = float(cohen_kappa(table))
    return float(np.trace(table) / len(a)), None if math.isnan(kappa) else kappa


def agreement(judgements: Sequence[Judgement]) -> list[Agreement]:
    """Every two annotators who judged an item in common; repeats are omitted."""
    by_name: defaultdict[str, list[Judgement]] = defaultdict(list)
    for j in judgements:
        if j.kind != "repeat":
            by_name[j.annotator].append(j)
    choices = {name: _choices(js) for name, js in sorted(by_name.items())}
    result: list[Agreement] = []
    for a, b in itertools.combinations(choices, 2):
        pairs = sorted(choices[a].keys() & choices[b].keys())
        if pairs:
            share, kappa = cohen([choices[a][p] for p in pairs], [choices[b][p] for p in pairs])
            result.append(Agreement(a, b, len(pairs), share, kappa))
    return result


def person(
    name: str, judgements: Sequence[Judgement], gold: Mapping[str, tuple[int, ...]]
) -> Person:
    """Figures of one annotator.

    Args:
        gold: Known ranks [K] by item.
    """
    own = [j for j in judgements if j.annotator == name]
    judged = [j for j in own if j.status == "ok"]
    cast = votes(j for j in judged if j.kind == "plain")
    choices = {v.pair: v.choice for v in cast}
    wins = [
        (v.choice == FIRST) == v.a_shown_first
        for v in cast
        if v.choice != TIE and v.judgement.order is not None
    ]
    truth = _choices([Judgement(item=i, annotator="gold", ranks=r) for i, r in gold.items()])
    tested = _choices(j for j in judged if j.kind == "gold")
    repeated = _choices(j for j in judged if j.kind == "repeat")
    correct = [c == truth[p] for p, c in tested.items() if truth.get(p, TIE) != TIE]
    same = [c == choices[p] for p, c in repeated.items() if p in choices]
    seconds = [j.seconds for j in judged if j.seconds is not None]
    return Person(
        name=name,
        judged=len(judged),
        skipped=sum(j.status == "skip" for j in own),
        flagged=sum(j.flagged for j in own),
        ties=sum(c == TIE for c in choices.values()) / len(choices) if choices else None,
        first=sum(wins) / len(wins) if wins else None,
        seconds=median(seconds) if seconds else None,
        gold=(sum(correct), len(correct)),
        repeats=(sum(same), len(same)),
    )
