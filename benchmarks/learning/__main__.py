"""Every method on real training: ``python -m benchmarks.learning --out runs/learning``.

Writes ``docs/learning.md`` and ``docs/learning.json`` from what is in ``--out``; a stopped run goes
on. ``--slice`` is what CI runs: PPO alone on an easier task, one seed.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.learning import page, words
from trimtab.launch.jobs import Job, headline, run
from trimtab.objectives.methods import METHODS

LEARN = "benchmarks.learning.words:learn"
SEEDS = (0, 1, 2)
SETTINGS = ((64, 1e-4), (128, 2e-4), (128, 4e-4))
"""Other batches and learning rates than 64 and 2e-4, one seed and half the samples each."""

STALENESS = (0, 1, 2, 4)
"""Iterations that completions may be older than the weights they train."""


def jobs(out: Path, start: Path, rows: set[str]) -> list[Job]:
    """All of ``rows``."""
    base = {"start": str(start)}
    planned: list[Job] = []
    if "words" in rows:
        for name in sorted(METHODS):
            args = {**base, "overrides": {"method": {"type": name}}}
            planned += [Job("words", name, s, LEARN, args) for s in SEEDS]
    if "staleness" in rows:
        for limit in STALENESS:
            rollout = {"max_staleness": limit}
            args = {**base, "overrides": {"method": {"type": "grpo"}, "rollout": rollout}}
            planned += [Job("staleness", str(limit), s, LEARN, args) for s in SEEDS]
    if "settings" in rows:
        for name in sorted(METHODS):
            for batch, lr in SETTINGS:
                args = {**base, "overrides": {"method": {"type": name}}, "batch": batch, "lr": lr}
                args["samples"] = 5120
                planned.append(Job("settings", f"{name}@{batch},{lr:g}", 0, LEARN, args))
    return planned


ROWS = ("words", "staleness", "settings")


def main() -> None:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--only", nargs="+", default=(), help="names of methods or variants")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--slice", action="store_true", help="the small part that CI runs")
    args = parser.parse_args()
    out: Path = args.out
    if args.slice:
        small(out)
        return
    start = words.start(out / "start")
    words.measure(start / "sft" / "model", start, start / "before")
    todo = jobs(out, start, set(args.rows))
    if args.only:
        todo = [j for j in todo if j.name.partition("@")[0] in args.only]
    run(todo, out, args.workers, report=print)
    page.write(out, args.docs)


def small(out: Path, weight: float = 1.0) -> None:
    """PPO on one step of arithmetic, one seed, 12 steps: it must have begun to learn.

    pass@1 of the SFT model is about 0.3, of 100 held-out problems; its standard error is 0.03.

    Args:
        out: Folder; the SFT model in it is used again.
        weight: Of the reward; -1 is a defect that must be noticed.

    Raises:
        SystemExit: it did not learn.
    """
    start = words.start(out / "start", size="small")
    reward = {**words.VERIFIER, "weight": weight}
    result = words.learn(
        out / f"slice-ppo-{weight:g}",
        0,
        start=str(start),
        samples=768,
        lr=4e-4,
        overrides={"method": {"type": "ppo"}, "rewards": [reward]},
    )
    print(headline(result))
    if result["gain"] < 0.15:
        raise SystemExit(f"PPO gained {result['gain']:.3f} in pass@1, not 0.15")


if __name__ == "__main__":
    main()
