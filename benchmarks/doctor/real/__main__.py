"""``python -m benchmarks.doctor.real``: faults of a pretrained model, diagnosed; run it again to resume.

Several processes may share the folder.

Seeds 0 to 13 are for tuning, with the tuning reward rules; the report is over seeds from 14 on, with
held-out rules. The model is fetched (``trimtab fetch smollm2``) where ``--model`` does not hold it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import time
import traceback
from collections.abc import Generator, Sequence
from pathlib import Path

from benchmarks.doctor.__main__ import spans
from benchmarks.doctor.real.real_plan import RealSpec, real_specs


def train(todo: Sequence[RealSpec], model: str, out: Path, minutes: float) -> None:
    """Train the runs that are not finished, until ``minutes`` have passed."""
    import torch

    from benchmarks.doctor.real.real_run import make_real

    torch.set_num_threads(1)
    began = time.monotonic()
    waiting = [s for s in todo if not (out / f"{s.key}.json").is_file()]
    print(f"{len(todo) - len(waiting)} of {len(todo)} runs are done", flush=True)
    for i, spec in enumerate(waiting, 1):
        if time.monotonic() - began > 60 * minutes:
            print(f"time is up with {len(waiting) - i + 1} runs left; run it again to resume")
            return
        with alone(out / f"{spec.key}.lock") as mine:
            if not mine or (out / f"{spec.key}.json").is_file():
                continue  # of another process
            try:
                truth = make_real(spec, model, out)
                print(f"{i}/{len(waiting)} {spec.key}: {truth['seconds']:.0f} s", flush=True)
            except (ValueError, RuntimeError, AssertionError):
                print(
                    f"{i}/{len(waiting)} {spec.key}: FAILED\n{traceback.format_exc()}", flush=True
                )


@contextlib.contextmanager
def alone(path: Path) -> Generator[bool]:
    """Lock ``path`` for the block; False where another process holds the lock. The empty file stays."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/doctor-real"))
    parser.add_argument("--model", default="runs/fetch/smollm2", help="folder of the model")
    parser.add_argument("--seeds", type=spans, default=spans("0,14,15"), help="seeds to run")
    parser.add_argument("--only", default="", help="recipes, faults or sorts, with commas")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no run after this time")
    parser.add_argument("--report", type=spans, default=spans("14-29"), help="seeds to report on")
    parser.add_argument("--docs", type=Path, default=None, help="folder of doctor.md")
    parser.add_argument("--no-train", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    todo = real_specs(args.seeds)
    if args.only:
        names = set(args.only.split(","))
        todo = [s for s in todo if {s.recipe.name, s.recipe.fault, s.recipe.sort} & names]
    if not args.no_train:
        if not (Path(args.model) / "config.json").is_file():
            from trimtab.cli.main import main as run_command

            run_command(["fetch", "smollm2", "--out", args.model])
        train(todo, args.model, args.out, args.minutes)
    from benchmarks.doctor.real import real_score

    real_score.report(args.out, set(args.report), args.docs)


if __name__ == "__main__":
    main()
