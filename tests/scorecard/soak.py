"""``python -m tests.scorecard.soak``, or ``make soak``: small GRPO steps with a random fault every 50.

The run is started again after each fault that ends it, as an operator would. Three faults of four end it, so few
processes live longer than their caches take to fill; therefore 3,000 steps follow whose faults let the process
live. A stopped soak goes on where it was. The figures are written to ``docs/soak.json``. Exit status 1 if the run
did not complete, a step is missing or doubled, memory grows by 1 MB per 1,000 steps or more, or descriptors,
threads or processes leak.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import yaml

from tests.scorecard.faulty_run import FAULTS, NOT_FATAL
from tests.scorecard.table import ROOT
from tests.support import folders
from tests.support.labelling import free_port
from trimtab.runs import MetricTable, to_json
from trimtab.runs.run_status import status_of
from trimtab.sandbox.endpoint import Endpoint
from trimtab.sandbox.simulated_judge import SimulatedJudge

SLOPE = 1.0
"""MB per 1,000 steps."""
GROWTH = 5.0
"""Per 1,000 steps. A leak at every fault alone is one per 50 steps: 20 per 1,000."""
MOMENTARY = 6
"""Descriptors, threads or processes by which two looks at one process may differ without a leak. Files
are open for a moment (a run of the slice had 14 descriptors, 17 and 14 again), and four calls to the judge are made at once."""
SETTLED = 150
"""Steps after a start whose memory never counts: allocators and caches fill fastest in the first 130 steps."""
CALM = 3_000
"""Steps at the end whose faults let the process live."""
KEY_VARIABLE = "SOAK_JUDGE_KEY"
RECORD = ROOT / "docs" / "soak.json"
EACH = 5
"""Steps between two looks at the process."""


def prepare(
    folder: Path, steps: int, every: int, seed: int, leaks: bool = False, calm: int = 0
) -> None:
    """Write the model, the data, the configuration and the plan of the faults.

    Args:
        calm: Further steps whose faults let the process live.
    """
    if (folder / "plan.json").exists():
        return
    (folder / "done").mkdir(parents=True, exist_ok=True)
    folders.model_folder(folder / "model")
    folders.prompts(folder / "prompts.jsonl")
    reward = {
        "name": "r", "function": "tests.scorecard.faulty_run:reward", "timeout": 5.0,
        "options": {"plan": str(folder / "plan.json")},
    }  # fmt: skip
    judge = {
        "endpoint": f"http://127.0.0.1:{free_port()}/v1", "model": "sim", "mode": "score",
        "key_env": KEY_VARIABLE, "rubric": "helpful",
    }  # fmt: skip
    config = {
        "out": str(folder / "run"), "model": {"path": str(folder / "model"), "device": "cpu"},
        "data": {"path": str(folder / "prompts.jsonl")}, 
        "rewards": [reward, {"name": "judge", "ai": judge, "weight": 0.1}], "steps": steps + calm,
        "batch_size": 2, "method": {"group_size": 2}, "sampling": {"max_new_tokens": 4},
        "optim": {"lr": 1e-4}, "loop": {"save_steps": 10, "sample_steps": 25},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    rng = random.Random(seed)
    order = [FAULTS[i % len(FAULTS)] for i in range(max(0, (steps - 1) // every))]
    rng.shuffle(order)
    places = [every * (i + 1) - rng.randrange(min(every // 2, 10)) for i in range(len(order))]
    faults = dict(zip(places, order, strict=True))
    faults |= {
        steps + place: NOT_FATAL[place // every % len(NOT_FATAL)]
        for place in range(every, calm, every)
    }
    plan = {"faults": faults, "done": str(folder / "done")}
    (folder / "plan.json").write_text(json.dumps({**plan, "leaks": leaks}))


@contextlib.contextmanager
def judging(folder: Path) -> Generator[dict[str, str]]:
    """The judge of a soak while it lasts; the environment that its key is in."""
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    address = urlsplit(config["rewards"][1]["ai"]["endpoint"])
    refusals = folder / "done" / "refusals"

    class Refusing(Endpoint):
        def outcome(self, raw: bytes) -> str:
            with self.lock:
                self.calls.clear()
                left = int(refusals.read_text()) if refusals.exists() else 0
                if left > 0:
                    refusals.write_text(str(left - 1))
            return "429" if left > 0 else "ok"

    endpoint = Refusing(SimulatedJudge(), port=address.port or 0).start()
    try:
        yield {KEY_VARIABLE: endpoint.key}
    finally:
        endpoint.close()


def run(folder: Path) -> int:
    """Train to the end, over every fault, with a judge.

    Returns:
        Starts of the process in this call.

    Raises:
        SystemExit: as ``_run``.
    """
    with judging(folder) as variables:
        return _run(folder, variables)


def _run(folder: Path, variables: Mapping[str, str]) -> int:
    """Start the run until it is complete.

    Returns:
        Starts of the process in this call.

    Raises:
        SystemExit: the run ended twice at the same step without a fault.
    """
    starts = 0
    before = (-1, -1)
    while True:
        paths = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
        env = {
            **os.environ,
            **variables,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        words = [sys.executable, "-m", "tests.scorecard.faulty_run"]
        with (folder / "output.txt").open("ab") as output:
            process = subprocess.Popen(
                [*words, str(folder / "config.yaml"), str(folder / "plan.json")],
                env=env, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
            starts += 1
            code = watch(process, folder)
        if code == 0:
            return starts
        happened = len(list((folder / "done").iterdir()))
        status = status_of(folder / "run") if (folder / "run" / "heartbeat.json").exists() else None
        now = (happened, status.step if status else 0)
        if now == before:
            raise SystemExit(f"{folder / 'output.txt'}: it ended with status {code} and no fault")
        before = now


def watch(process: subprocess.Popen[bytes], folder: Path) -> int:
    """Append a line about the process to ``process.jsonl`` every few steps; its exit status."""
    first = last = -1
    with (folder / "process.jsonl").open("a", encoding="utf-8") as lines:
        while process.poll() is None:
            time.sleep(0.05)
            try:
                beat = json.loads((folder / "run" / "heartbeat.json").read_bytes())
            except (OSError, ValueError):
                continue
            if (
                beat["pid"] != process.pid
                or beat["phase"] != "training"
                or beat["step"] < last + EACH
            ):
                continue
            last = beat["step"]
            first = last if first < 0 else first
            figures = look(process.pid)
            if figures:
                lines.write(
                    to_json({"pid": process.pid, "step": last, "age": last - first, **figures})
                    + "\n"
                )
                lines.flush()
    return process.returncode


def look(pid: int) -> dict[str, float]:
    """Memory in MB, open descriptors, threads and children of a process; empty once it has ended."""
    base = Path(f"/proc/{pid}")
    try:
        status = dict(
            line.split(":\t", 1)
            for line in (base / "status").read_text().splitlines()
            if ":\t" in line
        )
        tasks = list((base / "task").iterdir())
        children = [c for t in tasks for c in (t / "children").read_text().split()]
        return {
            "rss_mb": float(status["VmRSS"].split()[0]) / 1024,
            "descriptors": len(list((base / "fd").iterdir())),
            "threads": len(tasks),
            "children": len(children),
        }
    except (OSError, KeyError):
        return {}


def judge(folder: Path, steps: int, settled: int = SETTLED, most: float = GROWTH) -> dict[str, Any]:
    """The figures of a soak, and under "wrong" what is wrong.

    Args:
        settled: As for ``steady``.
        most: Descriptors, threads or processes more per 1,000 steps that count as a leak, if one
            process has more than ``MOMENTARY`` more.
    """
    rows = [json.loads(line) for line in (folder / "process.jsonl").read_text().splitlines()]
    slopes, grown = growth(rows, settled, most)
    wrong: list[str] = []
    recorded = MetricTable.read(folder / "run").steps.astype(int).tolist()
    if recorded != list(range(1, steps + 1)):
        wrong.append(f"{len(recorded)} rows of metrics for {steps} steps")
    state = status_of(folder / "run").state
    if state != "finished" or not (folder / "run" / "model" / "model.safetensors").exists():
        wrong.append(f"the run is {state}")
    wrong += grown
    done = [p.name for p in (folder / "done").iterdir() if p.name.isdigit()]
    planned = json.loads((folder / "plan.json").read_bytes())["faults"]
    if len(done) < len(planned):
        wrong.append(f"{len(planned) - len(done)} of {len(planned)} faults did not happen")
    return {
        "steps": steps,
        "processes": len({r["pid"] for r in rows}),
        "faults": len(done),
        "looks": len(rows),
        "longest_life": max((r["age"] for r in rows), default=0),
        "slopes_per_1000_steps": slopes,
        "wrong": wrong,
    }


def growth(
    rows: Sequence[Mapping[str, Any]], settled: int, most: float
) -> tuple[dict[str, float], list[str]]:
    """Growth of each figure per 1,000 steps, and what of it is a leak. Arguments as for ``judge``."""
    old = steady(rows, settled)
    counts = ("descriptors", "threads", "children")
    slopes = {name: slope_of_life(old, name) for name in ("rss_mb", *counts)}
    # What grows with the run, and not with the process: each process begins higher than the one before.
    ages = [r["age"] // 10 for r in rows]
    slopes["rss_mb_of_run"] = slope([r["step"] for r in rows], [r["rss_mb"] for r in rows], ages)
    leaks = [
        f"memory grows by {slopes[name]:.2f} MB per 1,000 steps ({name})"
        for name in ("rss_mb", "rss_mb_of_run")
        if slopes[name] >= SLOPE
    ]
    leaks += [
        f"{name} grow by {slopes[name]:.1f} per 1,000 steps"
        for name in counts
        if slopes[name] >= most and rise_of_life(old, name) > MOMENTARY
    ]
    return slopes, leaks


def steady(rows: Sequence[Mapping[str, Any]], settled: int) -> list[Mapping[str, Any]]:
    """The looks at each process in the second half of its life, and at least ``settled`` steps after its start.

    Slow caches fill in the first half; a leak goes on in the second.
    """
    lives = {r["pid"]: r["age"] for r in rows}
    return [r for r in rows if r["age"] >= max(settled, lives[r["pid"]] / 2)]


def slope_of_life(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    """Growth of a figure per 1,000 steps within processes."""
    return slope([r["age"] for r in rows], [r[name] for r in rows], [r["pid"] for r in rows])


def rise_of_life(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    """Largest rise of a figure within one process: its highest value less its lowest."""
    lives: dict[int, list[float]] = {}
    for row in rows:
        lives.setdefault(row["pid"], []).append(row[name])
    return max((max(values) - min(values) for values in lives.values()), default=0.0)


def slope(times: Sequence[float], values: Sequence[float], groups: Sequence[float]) -> float:
    """Growth of the values per 1,000 units of time within groups (least squares); 0 where time stands still."""
    of_group = np.asarray(groups)
    time_left, value_left = (np.array(v, dtype=float) for v in (times, values))
    for group in set(groups):
        for array in (time_left, value_left):
            array[of_group == group] -= array[of_group == group].mean()
    spread = float(time_left @ time_left)
    return 1000 * float(time_left @ value_left) / spread if spread else 0.0


def main() -> None:
    """Run or continue the soak, and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=50, help="steps between faults")
    parser.add_argument(
        "--calm", type=int, default=CALM, help="further steps whose faults let the process live"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "soak")
    parser.add_argument("--record", type=Path, default=RECORD, help="where figures are written")
    args = parser.parse_args()
    folder = args.folder.resolve() / str(args.steps)
    prepare(folder, args.steps, args.every, args.seed, calm=args.calm)
    run(folder)
    figures = json.dumps(judge(folder, args.steps + args.calm), indent=1)
    args.record.write_text(figures + "\n", encoding="utf-8")
    print(figures)
    sys.exit(1 if json.loads(figures)["wrong"] else 0)


if __name__ == "__main__":
    main()
