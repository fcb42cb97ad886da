"""``python -m benchmarks.doctor``: plant, train, diagnose, report. A stopped benchmark goes on.

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
    """Every run that is not there yet, until the time is up."""
    import torch

    from benchmarks.doctor.run import make

    torch.set_num_threads(1)
    began = time.monotonic()
    waiting = [s for s in todo if not (out / f"{s.key}.json").is_file()]
    print(f"{len(todo) - len(waiting)} of {len(todo)} runs are done", flush=True)
    for i, spec in enumerate(waiting, 1):
        if time.monotonic() - began > 60 * minutes:
            print(f"time is up; {len(waiting) - i + 1} runs are left: the same command goes on")
            return
        try:
            truth = make(spec, out)
            print(f"{i}/{len(waiting)} {spec.key}: {truth['seconds']:.1f} s", flush=True)
        except (ValueError, RuntimeError, AssertionError):
            print(f"{i}/{len(waiting)} {spec.key}: FAILED\n{traceback.format_exc()}", flush=True)


SLICE = (("pays-words", 0), ("hot", 1), ("contradictions", 0), ("grpo", 2))


def small(out: Path) -> None:
    """A few runs: each fault must be found and named first, the healthy run left alone.

    Raises:
        SystemExit: one was not.
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
        raise SystemExit(f"not as it should be: {wrong}")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/doctor-bench"))
    parser.add_argument("--seeds", type=spans, default=spans("70-89"), help="seeds to run")
    parser.add_argument("--only", default="", help="recipes or sorts, by comma")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no run after so long")
    parser.add_argument("--report", type=spans, default=spans("70-89"), help="seeds to report on")
    parser.add_argument(
        "--docs", type=Path, default=None, help="where to write the table and the JSON"
    )
    parser.add_argument("--no-train", action="store_true")
    parser.add_argument("--slice", action="store_true", help="the small part that CI runs")
    parser.add_argument("--overhead", action="store_true", help="what loop.doctor_steps costs")
    parser.add_argument("--closed-loop", action="store_true", help="what acting wins back")
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
