"""How many comparisons does choosing them save? ``python -m benchmarks.labelling.active``.

A pool of pairs, a simulated person who labels them with Bradley-Terry noise, a reward model of what
is labelled so far. Uniform takes pairs at random; active those of highest BALD under an ensemble of
reward models fitted to resamples of the labels so far, with a little noise so that a batch is not
all of one kind. Both are judged on held-out pairs by gold, with the same kind of model.

The reward model is a linear head on the frozen base model, which allows many seeds; ``--whole``
trains all of it, as ``trimtab reward`` does, at some minutes a curve.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from scipy.special import expit

from trimtab.questions.label_bench import Bench, Floats, Probe, accuracy, needed, questions
from trimtab.sandbox.annotators import Annotator
from trimtab.stats.label_audit import bald
from trimtab.types import Group

HOWS = ("uniform", "active")


class Pool:
    """What may be asked, what is held out, and the person who answers."""

    def __init__(
        self, bench: Bench, seed: int, pool: int, test_size: int, *, train_all: bool
    ) -> None:
        self.bench, self.seed, self.train_all = bench, seed, train_all
        self.questions = questions(seed, pool)
        self.tests = questions(seed, test_size, start=10_000_000)
        self.groups = [bench.group(q) for q in self.questions]
        self.test_groups = [bench.group(q) for q in self.tests]
        if not train_all:
            self.probe = Probe(bench, self.groups)
            self.x = self.probe.features(bench, self.groups)
            self.test_x = self.probe.features(bench, self.test_groups)
        self.person = Annotator("person")

    def answer(self, i: int) -> int:
        """0 or 1. One stream a pair: the answer does not depend on when it is asked."""
        q = self.questions[i]
        rng = np.random.default_rng((self.seed, 37, i))
        return self.person.choose(q.scene, *q.answers, rng)

    def fit(self, labels: dict[int, int], members: int) -> tuple[float, Floats]:
        """Mean accuracy of the members on held-out pairs, and P(first is better) [K, pool]."""
        rng = np.random.default_rng((self.seed, 41, len(labels)))
        where, first = np.array(list(labels)), 1.0 - np.array(list(labels.values()))
        weight = rng.multinomial(len(labels), np.full(len(labels), 1 / len(labels)), size=members)
        if self.train_all:
            return self._fit_all(where, first, weight)
        gap = self.x[:, 0] - self.x[:, 1]
        heads = self.probe.pairs(gap[where], first, weight.astype(float))
        got = [accuracy(self.test_x @ h, self.tests) for h in heads]
        return float(np.mean(got)), expit(heads @ gap.T)

    def _fit_all(self, where: Floats, first: Floats, weight: Floats) -> tuple[float, Floats]:
        got: list[float] = []
        probs: list[Floats] = []
        for m, counts in enumerate(weight):
            groups: list[Group] = []
            for i, one, count in zip(where, first, counts, strict=True):
                ranks = [int(1 - one), int(one)]
                groups += [self.bench.group(self.questions[int(i)], ranks)] * int(count)
            scorer = self.bench.train(groups, seed=self.seed * 100 + m)
            got.append(accuracy(self.bench.scores(scorer, self.test_groups), self.tests))
            scores = np.array(self.bench.scores(scorer, self.groups))
            probs.append(expit(scores[:, 0] - scores[:, 1]))
        return float(np.mean(got)), np.array(probs)


def curve(pool: Pool, how: str, sizes: list[int], members: int) -> list[float]:
    """Accuracy after each number of labels."""
    rng = np.random.default_rng((pool.seed, 31))
    labels: dict[int, int] = {}
    probs = np.full((members, len(pool.questions)), 0.5)
    reached: list[float] = []
    for size in sizes:
        open_ = np.array([i for i in range(len(pool.questions)) if i not in labels])
        worth = rng.random(len(open_))
        if how == "active" and labels:
            worth = bald(probs[:, open_]) + 0.02 * worth
        for i in open_[np.argsort(-worth)][: size - len(labels)]:
            labels[int(i)] = pool.answer(int(i))
        got, probs = pool.fit(labels, members)
        reached.append(got)
    return reached


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="runs/labelling/active.json")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[50, 100, 150, 200, 300, 400, 600, 800]
    )
    parser.add_argument("--pool", type=int, default=3000)
    parser.add_argument("--held", type=int, default=1000)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--whole", action="store_true", help="train all of the reward model")
    args = parser.parse_args()
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    done: dict[str, list[float]] = json.loads(out.read_text()) if out.is_file() else {}
    bench = Bench()
    for seed in range(args.seeds):
        missing = [how for how in HOWS if f"{how}-{seed}" not in done]
        if not missing:
            continue
        start = time.monotonic()
        pool = Pool(bench, seed, args.pool, args.held, train_all=args.whole)
        for how in missing:
            done[f"{how}-{seed}"] = curve(pool, how, args.sizes, args.members)
            out.write_text(json.dumps(done, indent=1))
            accuracies = " ".join(f"{a:.3f}" for a in done[f"{how}-{seed}"])
            print(f"{how}-{seed:<4} {accuracies}  {time.monotonic() - start:.0f} s", flush=True)
    curves = {how: np.array([done[f"{how}-{s}"] for s in range(args.seeds)]) for how in HOWS}
    print("labels      " + " ".join(f"{s:>5}" for s in args.sizes))
    for how, lines in curves.items():
        print(f"{how:<11} " + " ".join(f"{a:.3f}" for a in lines.mean(0)))
    rng = np.random.default_rng(0)
    for at in range(2, len(args.sizes)):
        size = args.sizes[at]
        savings: list[float] = []
        for draw in [np.arange(args.seeds), *rng.integers(args.seeds, size=(1000, args.seeds))]:
            goal = float(curves["uniform"][draw].mean(0)[at])
            n = needed(args.sizes, list(curves["active"][draw].mean(0)), goal)
            savings.append(1 - (n if n is not None else 2 * args.sizes[-1]) / size)
        low, high = np.quantile(savings[1:], [0.025, 0.975])
        goal = curves["uniform"].mean(0)[at]
        print(f"accuracy {goal:.3f}: of uniform's {size} labels {savings[0]:.0%} fewer "
              f"[{low:.0%}, {high:.0%}]")  # fmt: skip


if __name__ == "__main__":
    main()
