"""How many comparisons does choosing them save? ``python -m benchmarks.labelling.active``.

A pool of pairs, a simulated person who labels them with Bradley-Terry noise, a reward model trained
from the sandbox's base model on what is labelled so far. Uniform takes pairs at random, active those
of highest BALD under an ensemble (heads, data orders and resamples of their own) trained on the
labels so far, a little noise added so that a batch is not one kind. Both are judged by the mean
accuracy of the same kind of ensemble's members on held-out pairs, by gold.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from scipy.special import expit

from benchmarks.labelling.model import Bench, accuracy, needed, questions
from trimtab.sandbox.annotators import Annotator
from trimtab.stats.audit import bald
from trimtab.types import Group


def curve(
    bench: Bench, how: str, seed: int, sizes: list[int], pool: int, held: int, members: int
) -> list[float]:
    """Accuracy after each number of labels."""
    asked = questions(seed, pool)
    tests = questions(seed, held, start=10_000_000)
    test_groups = [bench.group(q) for q in tests]
    plain = [bench.group(q) for q in asked]
    person = Annotator("person")
    rng = np.random.default_rng((seed, 31))
    labelled: dict[int, Group] = {}
    reached: list[float] = []
    probs = np.full((members, pool), 0.5)
    for size in sizes:
        open_ = np.array([i for i in range(pool) if i not in labelled])
        worth = rng.random(len(open_))
        if how == "active" and labelled:
            worth = bald(probs[:, open_]) + 0.02 * worth
        for i in open_[np.argsort(-worth)][: size - len(labelled)]:
            q = asked[int(i)]
            # One stream a pair: the answer to a question does not depend on when it is asked.
            said = person.choose(q.scene, *q.answers, np.random.default_rng((seed, 37, int(i))))
            labelled[int(i)] = bench.group(q, ranks=[said, 1 - said])
        groups = list(labelled.values())
        got: list[float] = []
        for m in range(members):
            draw = np.random.default_rng((seed, 41, size, m)).integers(
                len(groups), size=len(groups)
            )
            mine = [groups[int(k)] for k in draw]
            scorer = bench.train(mine, seed=seed * 100 + m)
            got.append(accuracy(bench.scores(scorer, test_groups), tests))
            if how == "active" and size != sizes[-1]:
                scores = np.array(bench.scores(scorer, plain))
                probs[m] = expit(scores[:, 0] - scores[:, 1])
        reached.append(float(np.mean(got)))
    return reached


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="runs/labelling/active.json")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 200, 400, 800])
    parser.add_argument("--pool", type=int, default=3000)
    parser.add_argument("--held", type=int, default=600)
    parser.add_argument("--members", type=int, default=3)
    given = parser.parse_args()
    out = Path(given.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    done: dict[str, list[float]] = json.loads(out.read_text()) if out.is_file() else {}
    bench = Bench()
    for seed in range(given.seeds):
        for how in ("uniform", "active"):
            key = f"{how}-{seed}"
            if key in done:
                continue
            start = time.monotonic()
            done[key] = curve(bench, how, seed, given.sizes, given.pool, given.held, given.members)
            out.write_text(json.dumps(done, indent=1))
            told = " ".join(f"{a:.3f}" for a in done[key])
            print(f"{key:<12} {told}  {time.monotonic() - start:.0f} s", flush=True)
    means = {
        how: np.mean([done[f"{how}-{s}"] for s in range(given.seeds)], axis=0)
        for how in ("uniform", "active")
    }
    print("labels       " + " ".join(f"{s:>5}" for s in given.sizes))
    for how, line in means.items():
        print(f"{how:<12} " + " ".join(f"{a:.3f}" for a in line))
    for size, goal in zip(given.sizes[1:], means["uniform"][1:], strict=True):
        n = needed(given.sizes, list(means["active"]), float(goal))
        said = "not reached" if n is None else f"{n:.0f} ({1 - n / size:.0%} fewer)"
        print(f"accuracy {goal:.3f}: uniform {size}, active {said}")


if __name__ == "__main__":
    main()
