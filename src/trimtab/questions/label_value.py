"""What people's labels buy in each form: agreement, bits, and the accuracy of a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.special import xlogy

from trimtab.sandbox import annotator_arrays as people
from trimtab.sandbox.annotator_arrays import Condition, Floats, Ints
from trimtab.sandbox.annotators import Annotator
from trimtab.sandbox.world import WEIGHTS, gold
from trimtab.stats.newton import fit_logistic
from trimtab.stats.reliability import alpha_of, coincidences

if TYPE_CHECKING:
    from trimtab.questions.label_bench import Question

SCALE = Annotator("anyone").scale
"""Nats per point of gold score."""
ANSWERS = 4
"""Completions per prompt that may be labelled."""
_HELD_OUT = 10_000_000
_LONGEST = 9


@dataclass(frozen=True, slots=True)
class Bed:
    """Prompts with completions as arrays: utilities in nats, lengths in words, features of the base model.

    N prompts for labels, T held-out ones with two completions, L with nine completions.
    """

    x: Floats
    """[N, 4, D] state of the frozen base model at the last token, standardised."""
    utility: Floats
    """[N, 4]"""
    parts: Floats
    """[N, 4, 4] parts of gold: helpful, honest, harmless, concise."""
    words: Ints
    """[N, 4] words of each completion."""
    prompt_words: Ints
    """[N]"""
    test_x: Floats
    """[T, 2, D]"""
    test_utility: Floats
    """[T, 2]"""
    longest: Floats
    """[L, 9] utilities."""

    @classmethod
    def make(cls, folder: Path, seed: int, prompts: int, tests: int, longest: int) -> None:
        """Sample completions, run the base model on them once, and save both."""
        from trimtab.questions.label_bench import Bench, Probe, questions

        bench = Bench()
        train, held_out = questions(seed, prompts, ANSWERS), questions(seed, tests, 2, _HELD_OUT)
        groups = [bench.group(q) for q in train]
        probe = Probe(bench, groups)
        many = _many_completions(seed, longest)
        np.savez(
            folder / "bed.npz",
            x=probe.features(bench, groups),
            utility=_utilities(train),
            parts=[[_parts(q, a) for a in q.answers] for q in train],
            words=[[len(a.split()) for a in q.answers] for q in train],
            prompt_words=[len(q.scene.prompt.split()) for q in train],
            test_x=probe.features(bench, [bench.group(q) for q in held_out]),
            test_utility=_utilities(held_out),
            longest=many,
        )

    @classmethod
    def load(cls, folder: Path) -> Bed:
        """What ``make`` saved."""
        with np.load(folder / "bed.npz") as arrays:
            return cls(**{name: arrays[name] for name in arrays.files})

    def accuracy(self, heads_RD: Sequence[Floats]) -> Floats:
        """Share of heads [T'] that order each held-out pair as gold does, for pairs whose gold differs."""
        scores = self.test_x @ np.array(heads_RD).T
        gap = self.test_utility[:, 0] - self.test_utility[:, 1]
        right = np.sign(scores[:, 0] - scores[:, 1]) * np.sign(gap)[:, None]
        return ((1 + right) / 2).mean(1)[gap != 0]


def _utilities(rows: Sequence[Question]) -> Floats:
    return SCALE * np.array([q.gold for q in rows])


def _parts(q: Question, answer: str) -> list[float]:
    score = gold(q.scene, answer)
    return [float(getattr(score, part)) for part in WEIGHTS]


def _many_completions(seed: int, n: int) -> Floats:
    """Utilities [n, 9] of nine completions; the gold of different prompts' completions of one pool, since
    a sandbox prompt has too few different ones."""
    from trimtab.questions.label_bench import questions

    pool = _utilities(questions(seed, 3 * n, 3, 2 * _HELD_OUT))
    return pool.reshape(n, _LONGEST)


@dataclass(frozen=True, slots=True)
class Clock:
    """What a label costs. The times are assumed."""

    words_per_s: float = 4.0
    decide_s: float = 3.0

    def seconds(self, words: npt.ArrayLike, decisions: float) -> Floats:
        """Of labels that read so many words and take so many decisions."""
        return np.asarray(words, np.float64) / self.words_per_s + decisions * self.decide_s


def affordable(seconds_N: Floats, minutes: float) -> int:
    """How many labels fit into so many minutes, at least one."""
    return max(1, int(np.searchsorted(np.cumsum(seconds_N), 60 * minutes, side="right")))


def head(bed: Bed, form: str, panel: Sequence[Annotator], clock: Clock, minutes: float, levels: int, ridge: float, rng: np.random.Generator) -> Floats:  # fmt: skip
    """The reward model [D] that so many minutes of labelling buy.

    Args:
        form: "pairs": one random pair per prompt. "scores", "centred", "order": one person scores all
            completions of a prompt, which is read once; their numbers, those less each person's mean, or
            the order within a prompt are fitted. "rank": one person ranks them by sorting.
    """
    most = 60 * minutes / clock.decide_s  # no label is quicker than one decision
    place = np.resize(rng.permutation(len(bed.x)), int(most) + 1)
    if form == "pairs":
        first, second = rng.permuted(np.tile(np.arange(ANSWERS), (len(place), 1)), axis=1)[:, :2].T
        read = bed.prompt_words[place] + bed.words[place, first] + bed.words[place, second]
        n = affordable(clock.seconds(read, 1), minutes)
        place, first, second = place[:n], first[:n], second[:n]
        careless = Condition.of(panel, people.turns(panel, n)).carelessness_N
        preferred = people.choose(
            bed.utility[place, first], bed.utility[place, second], careless, rng
        )
        return fit_logistic(bed.x[place, first] - bed.x[place, second], preferred, ridge)[0]
    read = bed.prompt_words[place] + bed.words[place].sum(1)
    # Sorting four completions by binary insertion takes 4.67 comparisons on average: 1 + 5/3 + 2.
    n = affordable(clock.seconds(read, 14 / 3 if form == "rank" else ANSWERS), minutes)
    place = place[:n]
    if form == "rank":
        order = -people.rank(bed.utility[place], rng).astype(np.float64)
        return _ordered(bed, place, order, ridge)
    who = people.turns(panel, n)
    condition = Condition.of(panel, who).repeat(ANSWERS)
    rating = people.rate(bed.utility[place].ravel(), condition, SCALE, levels, rng)
    if form == "order":
        return _ordered(bed, place, rating.reshape(n, ANSWERS), ridge)
    if form == "centred":
        person = who.repeat(ANSWERS)
        for one in set(who.tolist()):
            rating[person == one] -= rating[person == one].mean()
    x = bed.x[place].reshape(n * ANSWERS, -1)
    square = x.T @ x + ridge * np.eye(x.shape[1])
    return np.linalg.solve(square, x.T @ (rating - rating.mean()))


def _ordered(bed: Bed, place_N: Ints, order_NK: Floats, ridge: float) -> Floats:
    """A head from an order within each prompt: all its pairs, each prompt weighing as its K - 1 free ones."""
    a, b = np.triu_indices(ANSWERS, 1)
    gaps = (bed.x[place_N][:, a] - bed.x[place_N][:, b]).reshape(-1, bed.x.shape[-1])
    preferred = (0.5 + 0.5 * np.sign(order_NK[:, a] - order_NK[:, b])).ravel()
    return fit_logistic(gaps, preferred, ridge, np.full((1, len(gaps)), 2 / ANSWERS))[0]


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Which of two completions is better, by each of three people [N, 3]: 1, 0, or 0.5 for a tie."""

    first: Floats
    gap: Floats
    """[N] utility of the first less that of the second."""

    def alpha_parts(self) -> Floats:
        """Krippendorff's coincidences [N, 3, 3]; their sum gives ``alpha_of``."""
        kinds = (2 * self.first).astype(int)
        return coincidences(np.stack([(kinds == k).sum(1) for k in range(3)], axis=1))

    def right(self) -> tuple[Floats, Floats]:
        """Shares [N'] of right and of tied verdicts, on pairs whose gold differs."""
        decided = self.gap != 0
        better = (self.gap > 0)[:, None]
        tied = self.first == 0.5
        right = ~tied & ((self.first == 1) == better)
        return right.mean(1)[decided], tied.mean(1)[decided]


def verdicts(bed: Bed, form: str, panel: Sequence[Annotator], levels: int, n: int, rng: np.random.Generator) -> Verdicts:  # fmt: skip
    """The first two completions of ``n`` prompts, judged by everyone in one form."""
    utility = np.resize(bed.utility[:, :2], (n, 2))
    columns: list[Floats] = []
    for member in range(len(panel)):
        condition = Condition.of(panel, np.full(n, member))
        if form == "pairs":
            careless = condition.carelessness_N
            columns.append(people.choose(utility[:, 0], utility[:, 1], careless, rng))
            continue
        ratings = people.rate(utility.ravel(), condition.repeat(2), SCALE, levels, rng)
        columns.append(0.5 + 0.5 * np.sign(ratings[::2] - ratings[1::2]))
    return Verdicts(np.stack(columns, axis=1), utility[:, 0] - utility[:, 1])


def alpha(sums: Floats) -> Floats:
    """Krippendorff's alpha of summed coincidences [..., 3, 3]."""
    return np.asarray(alpha_of(sums))


def bits(sums: Floats) -> Floats:
    """Bits per verdict, at most 1, from summed (right, tied, 1) [..., 3]: mutual information with which of
    two is better, when a verdict is right, tied, or else wrong so often."""
    right, tied = sums[..., 0] / sums[..., 2], sums[..., 1] / sums[..., 2]
    decided = 1 - tied
    p = right / np.maximum(decided, 1e-12)
    return decided * (1 + (xlogy(p, p) + xlogy(1 - p, 1 - p)) / np.log(2))
