"""``docs/learning.md`` and ``docs/learning.json`` from the results."""

from __future__ import annotations

import json
import math
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
    if "ablation" in by_row:
        order = ["grpo", "no KL", "clip higher", "token level", "overlong", "dynamic sampling"]
        rows = [_learned(n, by_row["ablation"][n]) for n in order if n in by_row["ablation"]]
        parts += [
            "## From GRPO to DAPO\n",
            "Each row adds its part to those above it; the last is DAPO.\n",
            table(HEAD, rows),
        ]  # fmt: skip
    if "process" in by_row:
        rows = []
        outcome = [samples_to(r["curve"], GOAL) for _, r in by_row["process"]["outcome"]]
        for name, results in by_row["process"].items():
            needed = [samples_to(r["curve"], GOAL) for _, r in results]
            cells = " / ".join("not reached" if math.isnan(n) else f"{n:,.0f}" for n in needed)
            ratio = np.mean(needed) / np.mean(outcome)
            ratio_cell = "" if math.isnan(ratio) else f"{ratio:.2f}"
            rows.append([*_learned(name, results)[:5], cells, ratio_cell])
        parts += [
            "## Process against outcome reward\n",
            f"GRPO; \"needed\" is the number of completions until the mean reward reached {GOAL} "
            "(per seed); \"ratio\" is its mean divided by that of the outcome reward. The learned"
            " process reward model was trained on Monte-Carlo labels only. \"In the sum\" adds "
            "the product of its scores to the verifier's reward; the other rows add step "
            "advantages to the outcome's advantage (GRPO with process supervision).\n",
            table([*HEAD[:5], "needed", "ratio"], rows),
        ]  # fmt: skip
    if "credit" in by_row:
        results = by_row["credit"]["estimators"]
        rows = [
            [name, " / ".join(f"{r[key]:.3f}" for _, r in results)]
            for name, key in (
                ("critic (GAE, lambda 0.95)", "rho_critic"),
                ("group baseline (GRPO)", "rho_group"),
                ("Monte-Carlo values, 9 continuations", "rho_monte_carlo"),
            )
        ]
        parts += [
            "## How well advantages match a step's true effect\n",
            "Spearman correlation between a step's advantage and its true effect on the "
            "probability of a correct final answer, at the SFT policy, per seed.\n",
            table(["estimator", "correlation"], rows),
        ]  # fmt: skip
    if "experts" in by_row:
        rows = [
            [
                name, f"{mean(r, 'start'):.2f}", " / ".join(f"{x['end']:.2f}" for _, x in r),
                f"{mean(r, 'gain'):+.3f}", f"{mean(r, 'flips'):.2%}",
                f"{mean(r, 'variance_token'):.2e}", f"{mean(r, 'variance_sequence'):.2e}",
                spark(r[0][1]["curve"]["reward"]),
            ]
            for name, r in by_row["experts"].items()
        ]  # fmt: skip
        parts += [
            "## GSPO against GRPO on a mixture of experts\n",
            "Four experts, two per token, four minibatches per batch. \"Flips\" is the share of "
            "tokens and layers of a fixed set of completions whose experts change in one batch of"
            " updates. The variances are of a token's log-ratio and of its mean over a "
            "completion, after the last update of a batch.\n",
            table(
                ["method", "pass@1: start", "end, each seed", "gain", "flips", "token variance",
                 "completion variance", "curve"], rows,
            ),
        ]  # fmt: skip
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
