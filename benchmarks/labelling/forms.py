"""Comparisons against absolute scores by the same people: ``python -m benchmarks.labelling.forms``.

Each person judges answers to sandbox prompts in two forms: which of two is better, and a score from
1 to 7 for one answer. Both read with the same noise; scores have a zero and steps of the person's
own. A label costs reading (prompt and answers, ``--words`` a second) and deciding (``--decide``
seconds), so equal minutes buy different numbers of labels. Told are: labels a minute, how often a
person says the same again, agreement between people (Krippendorff's alpha; for scores by rank and
as numbers), bits a minute about which answer is better by gold, and the accuracy of a reward model
(a linear head on the frozen base model) trained on what equal minutes buy.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from scipy.special import xlogy

from trimtab.questions.label_bench import Bench, Floats, Probe, Question, accuracy, questions
from trimtab.sandbox.annotators import Annotator
from trimtab.stats.reliability import krippendorff_alpha

LEVELS = 7


def panel(severity: float) -> list[Annotator]:
    """Three people without biases whose zeros lie ``severity`` nats apart."""
    return [
        Annotator(name, severity=at * severity)
        for name, at in (("mild", -1.0), ("even", 0.0), ("strict", 1.0))
    ]


def words(text: str) -> int:
    """How many."""
    return len(text.split())


def bits(right: float, tied: float) -> float:
    """What a verdict tells of which of two is better, of at most 1 bit: mutual information with a
    fair coin, when it is right, tied or else wrong so often."""
    wrong = 1 - right - tied
    decided = right + wrong
    if decided <= 0:
        return 0.0
    p = right / decided
    return float(decided * (1 + (xlogy(p, p) + xlogy(1 - p, 1 - p)) / np.log(2)))


def verdict(person: Annotator, q: Question, form: str, rng: np.random.Generator) -> int:
    """0 or 1 for the better answer, -1 for a tie."""
    if form == "pairs":
        return person.choose(q.scene, q.answers[0], q.answers[1], rng)
    a, b = (person.rate(q.scene, x, rng, LEVELS) for x in q.answers[:2])
    return -1 if a == b else int(b > a)


def noise(
    people: Sequence[Annotator], sample: Sequence[Question], form: str, seed: int
) -> dict[str, float]:
    """Test-retest, right and tied shares on pairs whose gold differs, and alpha between people."""
    rng = np.random.default_rng((seed, 51))
    same: list[bool] = []
    right: list[bool] = []
    tied: list[bool] = []
    rows: list[np.ndarray] = []
    scores: list[np.ndarray] = []
    for q in sample:
        choices = [verdict(p, q, form, rng) for p in people]
        rows.append(np.bincount([s + 1 for s in choices], minlength=3))
        if form == "scores":
            ratings = [p.rate(q.scene, q.answers[0], rng, LEVELS) for p in people]
            scores.append(np.bincount(ratings, minlength=LEVELS + 1))
        if q.gold[0] != q.gold[1]:
            better = int(q.gold[1] > q.gold[0])
            same += [s == verdict(p, q, form, rng) for s, p in zip(choices, people, strict=True)]
            right += [s == better for s in choices]
            tied += [s == -1 for s in choices]
    return {
        "same again": float(np.mean(same)), "right": float(np.mean(right)),
        "tied": float(np.mean(tied)), "bits": bits(float(np.mean(right)), float(np.mean(tied))),
        "alpha of verdicts": krippendorff_alpha(rows),
        "alpha of numbers": krippendorff_alpha(scores, "interval") if scores else float("nan"),
    }  # fmt: skip


class Labelling:
    """What a number of minutes buys, and the reward model it gives."""

    def __init__(
        self,
        bench: Bench,
        train_questions: Sequence[Question],
        test_questions: Sequence[Question],
        speed: float,
        decide: float,
    ) -> None:
        self.questions, self.test_questions = train_questions, test_questions
        groups = [bench.group(q) for q in train_questions]
        self.probe = Probe(bench, groups)
        self.x = self.probe.features(bench, groups)
        self.test = self.probe.features(bench, [bench.group(q) for q in test_questions])
        self.speed, self.decide = speed, decide

    def seconds(self, q: Question, answers: Sequence[int]) -> float:
        """Of one label."""
        read = words(q.scene.prompt) + sum(words(q.answers[k]) for k in answers)
        return read / self.speed + self.decide

    def pairs(self, people: Sequence[Annotator], minutes: float, seed: int) -> tuple[float, int]:
        """(accuracy, labels): one random pair of the answers to each prompt in turn."""
        rng = np.random.default_rng((seed, 53))
        gaps: list[Floats] = []
        first: list[float] = []
        spent, i = 0.0, 0
        while spent < 60 * minutes:
            q = self.questions[i % len(self.questions)]
            a, b = (int(k) for k in rng.permutation(len(q.answers))[:2])
            person = people[i % len(people)]
            choice = person.choose(q.scene, q.answers[a], q.answers[b], rng)
            gaps.append(self.x[i % len(self.questions), a] - self.x[i % len(self.questions), b])
            first.append(1.0 - choice)
            spent += self.seconds(q, (a, b))
            i += 1
        head = self.probe.pairs(np.array(gaps), np.array(first))[0]
        return accuracy(self.test @ head, self.test_questions), i

    def scores(
        self, people: Sequence[Annotator], minutes: float, seed: int, use: str
    ) -> tuple[float, int]:
        """(accuracy, labels): one person scores all answers to a prompt, then the next prompt.

        ``use``: "numbers" fits the scores, "centred" the scores less the mean of the person, and
        "order" compares the scores of one prompt, ties a half.
        """
        rng = np.random.default_rng((seed, 59))
        where: list[tuple[int, int]] = []
        ratings: list[float] = []
        who: list[int] = []
        spent, i = 0.0, 0
        while spent < 60 * minutes:
            at = i % len(self.questions)
            q = self.questions[at]
            for k in range(len(q.answers)):
                where.append((at, k))
                ratings.append(people[i % len(people)].rate(q.scene, q.answers[k], rng, LEVELS))
                who.append(i % len(people))
                spent += self.seconds(q, (k,))
            i += 1
        rating, owner = np.array(ratings, float), np.array(who)
        if use == "order":
            size = len(self.questions[0].answers)
            rows = range(0, len(where), size)
            pairs = [(r + a, r + b) for r in rows for a in range(size) for b in range(a + 1, size)]
            gap = np.array([self.x[where[m]] - self.x[where[n]] for m, n in pairs])
            first = np.array([0.5 + 0.5 * np.sign(rating[m] - rating[n]) for m, n in pairs])
            head = self.probe.pairs(gap, first, np.full((1, len(pairs)), 2 / size))[0]
        else:
            if use == "centred":
                means = np.array([rating[owner == p].mean() for p in range(len(people))])
                rating = rating - means[owner]
            head = self.probe.scores(np.array([self.x[w] for w in where]), rating)[0]
        return accuracy(self.test @ head, self.test_questions), len(ratings)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--minutes", type=float, nargs="+", default=[30, 60, 120, 240])
    parser.add_argument("--severity", type=float, nargs="+", default=[0.0, 2.0])
    parser.add_argument("--words", type=float, default=4.0, help="read in a second")
    parser.add_argument("--decide", type=float, default=3.0, help="seconds to decide")
    parser.add_argument("--prompts", type=int, default=1500)
    args = parser.parse_args()
    bench = Bench()
    speed = (args.words, args.decide)
    for severity in args.severity:
        people = panel(severity)
        print(f"\npeople whose zeros lie {severity:g} nats apart")
        sample = questions(0, 1500)
        for form in ("pairs", "scores"):
            measures = noise(people, sample, form, 0)
            each = [
                (words(q.scene.prompt) * (2 if form == "scores" else 1) + sum(map(words, q.answers)))
                / args.words + args.decide * (2 if form == "scores" else 1)
                for q in sample
            ]  # fmt: skip
            minute = 60 / float(np.mean(each))
            figures = "  ".join(f"{k} {v:.3f}" for k, v in measures.items())
            print(
                f"{form:<7} {figures}  verdicts a minute {minute:.2f}  bits a minute {minute * measures['bits']:.3f}"
            )
        table: dict[str, list[list[float]]] = {}
        for seed in range(args.seeds):
            bed = Labelling(
                bench,
                questions(seed, args.prompts, 4),
                questions(seed, 500, 2, 10_000_000),
                *speed,
            )
            for minutes in args.minutes:
                table.setdefault("comparisons", []).append(list(bed.pairs(people, minutes, seed)))
                for use in ("numbers", "centred", "order"):
                    got = bed.scores(people, minutes, seed, use)
                    table.setdefault(f"scores, {use}", []).append(list(got))
        print("minutes           " + " ".join(f"{m:>22g}" for m in args.minutes))
        for name, flat in table.items():
            measures = np.array(flat).reshape(args.seeds, len(args.minutes), 2)
            cells = [
                f"{measures[:, m, 0].mean():.3f} +- {measures[:, m, 0].std() / args.seeds**0.5:.3f} ({measures[:, m, 1].mean():.0f})"
                for m in range(len(args.minutes))
            ]
            print(f"{name:<17} " + " ".join(f"{c:>22}" for c in cells), flush=True)


if __name__ == "__main__":
    main()
