"""``python -m benchmarks.doctor``: plant faults, train, diagnose, report; run it again to resume.

``--seeds 0-9`` are for tuning; the report is over ``--report 70-89``. ``--slice`` is what CI runs.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from benchmarks.doctor.plan import Spec, specs


def spans(text: str) -> list[int]:
    """ "0-2,5" as numbers."""
    numbers: list[int] = []
    for part in text.split(","):
        low, _, high = part.partition("-")
        numbers += range(int(low), int(high or low) + 1)
    return numbers


def train(todo: Sequence[Spec], out: Path, minutes: float) -> None:
    """Train the runs that are not finished, until ``minutes`` have passed."""
    import torch

    from benchmarks.doctor.run import make

    torch.set_num_threads(1)
    began = time.monotonic()
    waiting = [s for s in todo if not (out / f"{s.key}.json").is_file()]
    print(f"{len(todo) - len(waiting)} of {len(todo)} runs are done", flush=True)
    for i, spec in enumerate(waiting, 1):
        if time.monotonic() - began > 60 * minutes:
            print(
                f"time is up with {len(waiting) - i + 1} runs left; run the same command again to resume"
            )
            return
        try:
            truth = make(spec, out)
            print(f"{i}/{len(waiting)} {spec.key}: {truth['seconds']:.1f} s", flush=True)
        except (ValueError, RuntimeError, AssertionError):
            print(f"{i}/{len(waiting)} {spec.key}: FAILED\n{traceback.format_exc()}", flush=True)


SLICE = (("pays-words", 0), ("hot", 1), ("contradictions", 0), ("grpo", 2))


def small(out: Path) -> None:
    """Check a few runs: each fault must be ranked first, and the healthy run must have no finding.

    Raises:
        SystemExit: a run was diagnosed wrongly or is missing.
    """
    from benchmarks.doctor import score

    picked = [s for s in specs(range(3)) if (s.recipe.name, s.seed) in SLICE]
    assert len(picked) == len(SLICE), [s.key for s in picked]
    train(picked, out, 60)
    wrong = [
        r.key
        for r in score.results(out, lambda _: True)
        if (r.rang[:1] != (r.alarm,) if r.alarm else bool(r.rang))
    ]
    if wrong or len(list(out.glob("*.json"))) != len(SLICE):
        raise SystemExit(
            f"{len(list(out.glob('*.json')))} of {len(SLICE)} runs; diagnosed wrongly: {wrong}"
        )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/doctor-bench"))
    parser.add_argument("--seeds", type=spans, default=spans("70-89"), help="seeds to run")
    parser.add_argument(
        "--only", default="", help="recipes, sorts or alarm numbers, separated by commas"
    )
    parser.add_argument("--minutes", type=float, default=1e9, help="start no run after this time")
    parser.add_argument("--report", type=spans, default=spans("70-89"), help="seeds to report on")
    parser.add_argument(
        "--docs", type=Path, default=None, help="folder for the tables and the JSON"
    )
    parser.add_argument("--no-train", action="store_true")
    parser.add_argument("--slice", action="store_true", help="the few runs that CI checks")
    parser.add_argument(
        "--overhead", action="store_true", help="measure the cost of loop.doctor_steps"
    )
    parser.add_argument(
        "--closed-loop", action="store_true", help="measure the gold recovered by audit.act: stop"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.slice:
        small(args.out)
        return
    if args.overhead or args.closed_loop:
        import torch

        from benchmarks.doctor.loop import closed, overhead

        torch.set_num_threads(1)
        result = overhead(args.out) if args.overhead else closed(args.out, args.minutes)
        print(json.dumps(result, indent=1))
        name = "doctor-overhead.json" if args.overhead else "doctor-closed-loop.json"
        if args.docs is not None:
            (args.docs / name).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        return
    todo = specs(args.seeds)
    if args.only:
        names = set(args.only.split(","))
        todo = [s for s in todo if {s.recipe.name, s.recipe.sort, str(s.recipe.alarm)} & names]
    if not args.no_train:
        train(todo, args.out, args.minutes)
    from benchmarks.doctor import score

    score.report(args.out, set(args.report), args.docs)


if __name__ == "__main__":
    main()
