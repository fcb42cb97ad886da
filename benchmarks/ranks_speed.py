"""``python -m benchmarks.ranks_speed``: ranks on the cores of one machine, and a model of their step time.

Two ranks of one thread against one process of two threads, in turn. The model predicts the time of 2 and 4
ranks from phases of one rank: the computation of a batch that is as many times smaller, times the ranks per
core, plus the measured sum of gradients.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.rows import grpo_flags, grpo_sides, sft_side
from benchmarks.turns import ROOT, Result, flags

WORLDS = (2, 4)
PASSES = 2
"""Measured passes of a start."""


def measure(spec: dict[str, Any], world: int, threads: int) -> dict[str, Any]:
    """Seconds and phases of passes on ``world`` ranks of ``threads`` threads.

    Raises:
        SystemExit: a rank failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        text = json.dumps({**spec, "threads": threads, "answer": str(answer)})
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        env["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "src")])
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            "--nproc-per-node", str(world), "-m", "benchmarks.rank_side", text,
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        return json.loads(answer.read_text())


def seconds(results: Sequence[dict[str, Any]]) -> float:
    """Median of all passes."""
    return median(s for r in results for s in r["seconds"])


def main() -> None:
    """See the module."""
    parser = flags("ranks on one machine")
    parser.add_argument("--kind", default="sft", choices=["sft", "grpo"])
    parser.add_argument("--batch", type=int, default=32, help="rows per optimiser step of SFT")
    grpo_flags(parser, new=64)
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    args.token_budget = args.token_budget or 1024

    def job(parts: int) -> dict[str, Any]:
        """The work of a pass, or a ``parts``-th of it."""
        part = copy.copy(args)
        part.prompts //= parts
        part.batch //= parts
        spec = grpo_sides(part)[0] if args.kind == "grpo" else sft_side(part)[0]
        return {**spec, "turns": PASSES}

    one = [measure(job(1), 1, 2)]
    two = [measure(job(1), 2, 1)]
    for _ in range(args.turns - 1):
        one.append(measure(job(1), 1, 2))
        two.append(measure(job(1), 2, 1))
    ratios = sorted(seconds([a]) / seconds([b]) for a, b in zip(one, two, strict=True))
    lines = [
        f"{args.kind}, {args.model}: two ranks of one thread against one process of two threads: "
        f"{median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}] of its speed, target 0.9"
    ]
    values: dict[str, Any] = {"ratio": median(ratios), "ratios": ratios, "model": args.model}
    for world in WORLDS:
        part = measure(job(world), 1, 1)
        ranks = two if world == 2 else [measure(job(1), world, 1)]
        crowd = max(1.0, world / args.cores)
        steps = job(1)["steps"]
        predicted = seconds([part]) * crowd + steps * ranks[0]["sum"]
        real = seconds(ranks)
        values[f"predicted_{world}"], values[f"measured_{world}"] = predicted, real
        lines.append(
            f"  {world} ranks: predicted {predicted:.2f} s per pass, measured {real:.2f} s, "
            f"{100 * (predicted / real - 1):+.0f} % (target within 20 %)"
        )
    Result(f"ranks-{args.kind}-{args.model}", "pass", values, lines).show(args.folder)


if __name__ == "__main__":
    main()
