"""``docs/learning.md`` and ``docs/learning.json`` from the results."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Result = dict[str, Any]
BARS = "▁▂▃▄▅▆▇█"


def spark(values: Sequence[float], width: int = 20) -> str:
    """A curve in one line of text, from 0 to 1.

    >>> spark([0.0, 0.5, 1.0], 3)
    '▁▅█'
    """
    parts = np.array_split(np.array(values), min(width, len(values)))
    return "".join(BARS[min(7, int(8 * max(0.0, float(p.mean()))))] for p in parts)


def load(out: Path) -> dict[str, dict[str, list[tuple[int, Result]]]]:
    """row -> name -> (seed, result), in the order of names."""
    results: dict[str, dict[str, list[tuple[int, Result]]]] = {}
    for file in sorted(out.glob("*/result.json")):
        row, _, rest = file.parent.name.partition("-")
        name, _, seed = rest.rpartition("-")
        results.setdefault(row, {}).setdefault(name, []).append(
            (int(seed), json.loads(file.read_text()))
        )
    return results


def mean(results: Sequence[tuple[int, Result]], key: str) -> float:
    """Over seeds."""
    return float(np.nanmean([r[key] for _, r in results]))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write(out: Path, docs: Path) -> None:
    """Both files; rows without results are left out."""
    by_row = load(out)
    parts = [
        "# What each method learns\n",
        "Produced by `make learning` on two CPU cores. Word problems of two steps "
        "([sandbox](sandbox.md)); demonstrators err in 35 of 100 steps; all methods start from "
        "the same "
        "SFT model and draw 10,240 completions in batches of 64 at learning rate 2e-4. pass@k on "
        "300 "
        "held-out problems from 8 samples each, unbiased; 95 % intervals over problems. A curve "
        "is the "
        "mean reward of the batches over time, from 0 to 1. Methods with dynamic sampling make "
        "half as many steps, because they sample most batches twice; `samples` in learning.json "
        "is the number of completions sampled. "
        "VinePPO's continuations are not counted (`continuations`).\n",
    ]
    if "words" in by_row:
        rows = [_learned(name, results) for name, results in by_row["words"].items()]
        parts += ["## Every online method\n", table(HEAD, rows)]
    if "settings" in by_row:
        rows = []
        for key, results in by_row["settings"].items():
            name, _, rest = key.partition("@")
            batch, _, lr = rest.partition(",")
            r = results[0][1]
            rows.append([name, batch, lr, f"{r['gain']:+.3f}", spark(r["curve"]["reward"])])
        parts += [
            "## Other batch sizes and learning rates\n",
            "Half the samples, one seed.\n",
            table(["method", "batch", "lr", "gain", "curve"], rows),
        ]
    if "staleness" in by_row:
        synchronous = (
            mean(by_row["staleness"]["0"], "end") if "0" in by_row["staleness"] else math.nan
        )
        rows = [
            [*_learned(name, results), f"{100 * (mean(results, 'end') - synchronous):+.1f}"]
            for name, results in by_row["staleness"].items()
        ]
        parts += [
            "## Collected ahead\n",
            "GRPO with completions that are up to `rollout.max_staleness` iterations older than the "
            "weights they train, with truncated importance weights. The last column is the difference "
            "in mean pass@1 from the synchronous loop, in points.\n",
            table(["max_staleness", *HEAD[1:], "points"], rows),
        ]  # fmt: skip
    parts.append(
        "What the parts of DAPO, GSPO on a mixture of experts, and rewards of tokens and steps do is measured by "
        "questions 11 and\n12 ([questions](questions.md)).\n"
    )
    spent = sum(r["seconds"] for names in by_row.values() for rs in names.values() for _, r in rs)
    parts.append(
        f"\nThe runs of this page took {spent / 60:.0f} minutes of one core beside other work.\n"
    )
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "learning.md").write_text("\n".join(parts), encoding="utf-8")
    record = {
        row: {
            name: {str(s): {k: v for k, v in r.items() if k != "curve"} for s, r in results}
            for name, results in names.items()
        }
        for row, names in by_row.items()
    }
    (docs / "learning.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


HEAD = ("method", "pass@1: start", "end, each seed", "gain, mean", "pass@8: end", "KL", "curve")


def _learned(name: str, results: Sequence[tuple[int, Result]]) -> list[str]:
    ends = " / ".join(f"{r['end']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" for _, r in results)
    return [
        name, f"{mean(results, 'start'):.2f}", ends, f"{mean(results, 'gain'):+.3f}",
        f"{mean(results, 'pass@8'):.2f}", f"{mean(results, 'kl'):.2f}" if mean(results, "kl") else "",
        spark(results[0][1]["curve"]["reward"]),
    ]  # fmt: skip
