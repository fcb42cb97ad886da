"""``make huge-run``: what ``trimtab report`` and ``trimtab doctor`` take for a run of a million steps.

A run folder is written in the format of a training run: the metrics of a GRPO run, with some that are not
finite and some of an evaluation, and sample tables. Then each command reads it in a process of its own.
Targets: 15 s and 500 MB each. Exit status 1 if one is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import numpy as np

from trimtab.runs import Run, to_json

SECONDS, MEGABYTES = 15.0, 500.0
TABLES, ROWS = 40, 256
METRICS = (
    "reward/mean", "reward/std", "reward/unscored", "completion/length", "completion/truncated",
    "reward/brief", "group/uniform", "group/unscored", "group/tries", "kl/beta", "reward/raw",
    "reward/shaped", "reward/final", "advantage/std", "policy/loss", "policy/kl_loss", "policy/kl",
    "sampler/kl", "policy/clip_fraction", "policy/ratio", "policy/approx_kl", "policy/entropy",
    "grad_norm/policy", "lr/policy", "skipped", "policy/updates", "sampler/ess", "objective/entropy",
    "objective/kl", "time/step",
)  # fmt: skip


BLOCK = 10_000
"""Steps whose values are drawn; they repeat, because drawing and writing a million takes minutes."""


def lines(steps: int) -> Generator[str]:
    """The lines of ``metrics.jsonl``, as ``Run.log`` writes them."""
    rng = np.random.default_rng(0)
    tails: list[str] = []
    for values in rng.normal(0.5, 0.1, (min(BLOCK, steps), len(METRICS))).tolist():
        row = dict(zip(METRICS, values, strict=True))
        row |= {"skipped": 0.0, "policy/updates": 1.0, "group/tries": 1.0}
        if len(tails) % 1000 == 999:
            row |= {"eval/reward": values[0], "eval/length": values[3]}
        tails.append(to_json(row)[1:])
    for step in range(1, steps + 1):
        tail = tails[(step - 1) % len(tails)]
        if step == planted(steps):
            row = {**json.loads("{" + tail), "reward/mean": 1000.0}
            row |= {"policy/loss": math.nan, "grad_norm/policy": math.inf}
            tail = to_json(row)[1:]
        yield f'{{"step": {step}, "time": {1_700_000_000 + step}.125, {tail}\n'


def planted(steps: int) -> int:
    """The step with a spike of the reward, and a loss and a gradient norm that are not finite."""
    return steps * 2 // 3


def write(folder: Path, steps: int) -> None:
    """The folder of a run of ``steps`` steps."""
    rng = np.random.default_rng(1)
    with Run(folder, config={"stage": "rl", "steps": steps}) as run:
        with (folder / "metrics.jsonl").open("w", encoding="utf-8", newline="\n") as handle:
            handle.writelines(lines(steps))
        for step in np.linspace(1, steps, TABLES).astype(int).tolist():
            rewards = rng.normal(0.5, 0.1, ROWS).tolist()
            texts = [" ".join(f"w{w}" for w in rng.integers(0, 999, 24)) for _ in rewards]
            run.samples(
                step,
                [
                    {"prompt": f"prompt {i // 4}", "completion": text, "reward": reward,
                     "finish": "stop", "tokens": 24, "kl": 0.5}
                    for i, (text, reward) in enumerate(zip(texts, rewards, strict=True))
                ],
            )  # fmt: skip


def measure(command: str, folder: Path) -> dict[str, float]:
    """Wall and processor seconds of ``trimtab COMMAND FOLDER``, and its peak resident memory in MB."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "trimtab", command, str(folder)], stdout=subprocess.DEVNULL
    )
    peak = 0.0
    while True:
        peak = max(peak, _peak_mb(process.pid))
        pid, _, used = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        time.sleep(0.02)
    return {
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_mb": round(peak),
    }


def _peak_mb(pid: int) -> float:
    """VmHWM of a process, MB; 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return float(lines[0].split()[1]) / 1024 if lines else 0.0


def main() -> None:
    """Write the run unless it is there, measure both commands, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path("runs/huge-run"))
    parser.add_argument("--remove", action="store_true", help="remove the run folder afterwards")
    args = parser.parse_args()
    folder = args.folder / str(args.steps)
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        write(folder, args.steps)
        (folder / "complete").touch()
    size = (folder / "metrics.jsonl").stat().st_size / 1e6
    results = {command: measure(command, folder) for command in ("report", "doctor")}
    print(json.dumps({"steps": args.steps, "metrics_mb": round(size), **results}))
    if args.remove:
        shutil.rmtree(folder)
    missed = [c for c, r in results.items() if r["seconds"] > SECONDS or r["peak_mb"] > MEGABYTES]
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
