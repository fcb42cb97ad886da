"""``docs/learning.md`` and ``docs/learning.json`` from the results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learning.credit import samples_to

Result = dict[str, Any]
GOAL = 0.6
"""Mean reward whose sample count compares process and outcome reward."""
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
    found: dict[str, dict[str, list[tuple[int, Result]]]] = {}
    for file in sorted(out.glob("*/result.json")):
        row, _, rest = file.parent.name.partition("-")
        name, _, seed = rest.rpartition("-")
        found.setdefault(row, {}).setdefault(name, []).append(
            (int(seed), json.loads(file.read_text()))
        )
    return found


def mean(results: Sequence[tuple[int, Result]], key: str) -> float:
    """Over seeds."""
    return float(np.nanmean([r[key] for _, r in results]))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write(out: Path, docs: Path) -> None:
    """Both files; rows without results are left out."""
    found = load(out)
    parts = [
        "# What each method learns\n",
        "Made by `make learning` on two CPU cores. Word problems of two steps "
        "([sandbox](sandbox.md)); demonstrators err in 35 of 100 steps; all methods start from the same "
        "SFT model and draw 10,240 completions in batches of 128 at learning rate 5e-4. pass@k on 300 "
        "held-out problems from 8 samples each, unbiased; 95 % intervals over problems. A curve is the "
        "mean reward of the batches over time, from 0 to 1.\n",
    ]
    if "words" in found:
        rows = [_learned(name, results) for name, results in found["words"].items()]
        parts += ["## Every online method\n", table(HEAD, rows)]
    if "settings" in found:
        rows = []
        for key, results in found["settings"].items():
            name, _, rest = key.partition("@")
            batch, _, lr = rest.partition(",")
            r = results[0][1]
            rows.append([name, batch, lr, f"{r['gain']:+.3f}", spark(r["curve"]["reward"])])
        parts += [
            "## Other batches and rates\n",
            table(["method", "batch", "lr", "gain", "curve"], rows),
        ]
    if "ablation" in found:
        order = ["grpo", "no KL", "clip higher", "token level", "overlong", "dynamic sampling"]
        rows = [_learned(n, found["ablation"][n]) for n in order if n in found["ablation"]]
        parts += [
            "## From GRPO to DAPO\n", "Each row adds its part to those above it; the last is DAPO.\n",
            table(HEAD, rows),
        ]  # fmt: skip
    if "process" in found:
        rows = []
        for name, results in found["process"].items():
            needed = [samples_to(r["curve"], GOAL) for _, r in results]
            rows.append([*_learned(name, results)[:5], " / ".join(f"{n:,.0f}" for n in needed)])
        parts += [
            "## Process against outcome reward\n",
            f"GRPO; \"needed\" is the number of completions until the mean reward reached {GOAL} "
            "(each seed). The learned process reward model had labels by continuations alone.\n",
            table([*HEAD[:5], "needed"], rows),
        ]  # fmt: skip
    if "credit" in found:
        results = found["credit"]["estimators"]
        rows = [
            [name, " / ".join(f"{r[key]:.3f}" for _, r in results)]
            for name, key in (
                ("critic (GAE, lambda 0.95)", "rho_critic"),
                ("group baseline (GRPO)", "rho_group"),
                ("Monte-Carlo values, 9 continuations", "rho_monte_carlo"),
            )
        ]
        parts += [
            "## Whose advantage knows what a step was worth\n",
            "Spearman correlation of each step's advantage with its true effect on the chance of a "
            "right answer, at the SFT policy; each seed.\n",
            table(["estimator", "correlation"], rows),
        ]  # fmt: skip
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "learning.md").write_text("\n".join(parts), encoding="utf-8")
    record = {
        row: {
            name: {str(s): {k: v for k, v in r.items() if k != "curve"} for s, r in results}
            for name, results in names.items()
        }
        for row, names in found.items()
    }
    (docs / "learning.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


HEAD = ("method", "pass@1: start", "end, each seed", "gain, mean", "pass@8: end", "KL", "curve")


def _learned(name: str, results: Sequence[tuple[int, Result]]) -> list[str]:
    ends = " / ".join(f"{r['end']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" for _, r in results)
    return [
        name, f"{mean(results, 'start'):.2f}", ends, f"{mean(results, 'gain'):+.3f}",
        f"{mean(results, 'pass@8'):.2f}", f"{mean(results, 'kl'):.2f}",
        spark(results[0][1]["curve"]["reward"]),
    ]  # fmt: skip
