"""``python -m benchmarks.growth --axis group``: how time and memory grow, ours and TRL's.

One row of ``benchmarks.grpo`` a point, and the exponent b of y = a x^b through each curve, by least
squares on logarithms. Memory is that of the whole process, libraries included, so its exponents are
low for small models. Groups start at two: one answer has nothing to be compared with. With
``--ours-only`` all points are ready at once and take turns, each a share of its turn, so that a slow
minute of the machine bends no curve.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.page import processor
from benchmarks.rows import grpo, grpo_sides
from benchmarks.turns import Side, flags

AXES: dict[str, tuple[str, list[Any]]] = {
    "prompt": ("prompt", [64, 256, 1024, 4096]),
    "group": ("group", [2, 4, 8, 16, 32, 64]),
    "completion": ("new", [16, 32, 64, 128, 256]),
    "model": ("model", ["1m", "5m", "25m", "150m"]),
    "vocabulary": ("vocabulary", [2048, 16_384, 65_536, 151_936]),
}
SIZES = {"1m": 1e6, "5m": 5e6, "25m": 25e6, "150m": 150e6}


def exponent(x: list[float], y: list[float]) -> float:
    """b of y = a x^b."""
    slope, _ = np.polyfit(np.log(x), np.log(y), 1)
    return float(slope)


def points(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds a step and memory at each value of the axis, one after another."""
    name, values = AXES[args.axis]
    measured: list[dict[str, Any]] = []
    for value in values[: args.points]:
        setattr(args, name, value)
        result = grpo(args).values
        work = args.prompts * args.group
        one = {"x": SIZES.get(value, value), "ours": work / result["ours"]}
        one |= {"peer": work / result["peer"] if result["peer"] else None}
        one |= {k: result[k] for k in ("peak_mb_ours", "peak_mb_peer")}
        print(json.dumps(one), flush=True)
        measured.append(one)
    return measured


def in_turn(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The same of our side alone, all points in turn."""
    name, values = AXES[args.axis]
    turns = args.turns  # before --quick, which ``grpo_sides`` heeds, makes them fewer
    sides: list[Side] = []
    for value in values[: args.points]:
        setattr(args, name, value)
        sides.append(Side(grpo_sides(args)[0], name=f"-{args.axis}-{value}"))
    for side in sides:
        side.ask("go")
    runs = [[side.ask("go") for side in sides] for _ in range(turns)]
    for side in sides:
        side.close()
    spent = [[one[args.clock] / args.steps for one in turn] for turn in runs]
    measured = [
        {"x": SIZES.get(v, v), "ours": s, "peer": None, "peak_mb_ours": r["peak_mb"], "peak_mb_peer": None}
        for v, s, r in zip(values, steady(spent), runs[-1], strict=False)
    ]  # fmt: skip
    for one in measured:
        print(json.dumps(one), flush=True)
    return measured


def steady(seconds: list[list[float]]) -> list[float]:
    """Seconds of each point from [turn][point]: its median share of a turn, of the median turn."""
    all_turns = np.array(seconds)
    groups = all_turns.sum(1)
    return (np.median(all_turns / groups[:, None], 0) * np.median(groups)).tolist()


def fitted(points: list[dict[str, Any]]) -> dict[str, float]:
    """The exponent of every curve that has all of its points."""
    x = [p["x"] for p in points]
    names = ("ours", "peer", "peak_mb_ours", "peak_mb_peer")
    used = [n for n in names if len(points) > 1 and all(p[n] for p in points)]
    return {n: round(exponent(x, [p[n] for p in points]), 2) for n in used}


def flat(measured: list[dict[str, Any]]) -> dict[str, float]:
    """How far a step's time is from ``fixed + each * group``, as a share of the fixed part.

    The line goes through the curve by least squares from groups of 8 on; its fixed part is what
    the prompts cost, paid once whatever the group.
    """
    points = [p for p in measured if p["x"] >= 8]
    if len(points) < 3:
        return {}
    x, y = (np.array([p[k] for p in points]) for k in ("x", "ours"))
    each, fixed = np.polyfit(x, y, 1)
    return {
        "fixed": float(fixed),
        "each": float(each),
        "off": float(np.abs(y - fixed - each * x).max() / fixed),
    }


def main() -> None:
    """Measure one axis."""
    parser = flags("growth of GRPO's time and memory")
    parser.add_argument("--axis", default="group", choices=list(AXES))
    parser.add_argument("--points", type=int, default=99, help="only the first values of the axis")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--new", type=int, default=32)
    parser.set_defaults(turns=1, steps=1, vocabulary=None)
    args = parser.parse_args()
    how = (  # before the axis moves one of them, and ``--quick`` the turns
        f"{args.group} completions of at most {args.new} tokens to {args.prompts} prompts of {args.prompt} but for "
        f"the axis; {processor()}, {args.threads} threads, {args.turns} turns, {args.clock} clock"
    )
    measured = in_turn(args) if args.ours_only else points(args)
    result = {
        "row": f"growth-{args.axis}",
        "how": how,
        "points": measured,
        "exponents": fitted(measured),
    }
    if args.axis == "group":
        result["prompt"], result["prompts"], result["flat"] = (
            args.prompt,
            args.prompts,
            flat(measured),
        )
        result["row"] += f"-{args.prompt}"
    path = Path(args.folder) / "results" / f"{result['row']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
