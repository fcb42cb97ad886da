"""A grid of short runs in parallel processes, and the frontier of gold and reward against KL."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import yaml
from pydantic import Field, model_validator

from trimtab.config import Config, build, merge, set_path
from trimtab.errors import ConfigError, DataError
from trimtab.report.charts import Chart, Line, line_chart, number
from trimtab.report.sections import Section, Table, Tile, Verdict, render
from trimtab.runs import read_metrics, read_summary, to_json, write_atomic
from trimtab.runs.console import console
from trimtab.train.rl import RLConfig


class SweepConfig(Config):
    """Configuration of ``trimtab sweep RL.yaml --grid.method.kl.beta "[0, 0.05, 0.2]"``."""

    out: str = "runs/sweep"
    """Gets a run folder for each point, sweep.json and sweep.html."""
    rl: dict[str, Any]
    """The configuration of ``trimtab rl`` that is varied."""
    grid: dict[str, Any] = Field(min_length=1)
    """Dotted key of it, or nested keys, with the list of values to try."""
    seeds: tuple[int, ...] = (0,)
    steps: int | None = Field(default=None, gt=0)
    """Of each run; as the configuration says when not given."""
    gold: str = "gold"
    """Name of the reward that is watched as gold, with weight 0; without it the reward alone is
    shown."""
    tail: int = Field(default=5, gt=0)
    """Steps at the end of each run over which its figures are means."""
    workers: int = Field(default=0, ge=0)
    """Runs at once; 0 takes half the cores."""
    threads: int = Field(default=1, gt=0)
    """Of each run."""

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, values: Any) -> Any:
        """A configuration of ``trimtab rl`` with a grid beside it says enough."""
        if not isinstance(values, dict) or "rl" in values:
            return values
        given = cast("dict[str, Any]", values)
        mine = {k: v for k, v in given.items() if k in cls.model_fields}
        return {**mine, "rl": {k: v for k, v in given.items() if k not in cls.model_fields}}


def flatten(grid: dict[str, Any], path: str = "") -> dict[str, list[Any]]:
    """Dotted keys with their values.

    Raises:
        ConfigError: a key has no list of values.

    >>> flatten({"method": {"kl": {"beta": [0, 1]}}})
    {'method.kl.beta': [0, 1]}
    """
    found: dict[str, list[Any]] = {}
    for key, value in grid.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            found |= flatten(cast("dict[str, Any]", value), name)
        elif isinstance(value, list) and value:
            found[name] = cast("list[Any]", value)
        else:
            raise ConfigError(f"grid.{name}: give a list of values, as [0.01, 0.1]")
    return found


def plan(config: SweepConfig) -> list[tuple[str, dict[str, Any], Path, dict[str, Any]]]:
    """(label, point, folder, configuration) of each run, every one checked before any starts.

    Raises:
        ConfigError: a value is refused; the point is named.
    """
    keys = flatten(config.grid)
    made: list[tuple[str, dict[str, Any], Path, dict[str, Any]]] = []
    for values in itertools.product(*keys.values()):
        point = dict(zip(keys, values, strict=True))
        label = ", ".join(f"{k.rpartition('.')[2]} {v}" for k, v in point.items())
        for seed in config.seeds:
            over: dict[str, Any] = {}
            for key, value in point.items():
                set_path(over, key, value)
            given = merge(config.rl, over)
            given = merge(given, {"loop": {"seed": seed}})
            if config.steps is not None:
                given["steps"] = config.steps
            text = json.dumps(given, sort_keys=True, default=str)
            name = hashlib.sha256(text.encode()).hexdigest()[:10]
            given["out"] = str(Path(config.out) / name)
            build(RLConfig, given, f"sweep: {label}, seed {seed}")
            made.append((label, {**point, "seed": seed}, Path(given["out"]), given))
    return made


def _run(
    config: SweepConfig, planned: list[tuple[str, dict[str, Any], Path, dict[str, Any]]]
) -> None:
    """Start what is not whole; raises DataError where a run failed, after the others are done."""
    workers = config.workers or max(1, (os.cpu_count() or 2) // 2)
    waiting = [p for p in planned if "seconds" not in read_summary(p[2])]
    console.print(
        f"sweep: {len(planned)} runs, {len(planned) - len(waiting)} whole, {workers} at once"
    )
    going: list[tuple[str, Path, subprocess.Popen[bytes]]] = []
    failed: list[str] = []
    try:
        while waiting or going:
            while waiting and len(going) < workers:
                label, point, folder, given = waiting.pop(0)
                folder.mkdir(parents=True, exist_ok=True)
                file = folder / "sweep.yaml"
                write_atomic(file, yaml.safe_dump(given, sort_keys=False).encode())
                with open(folder / "log", "wb") as log:
                    env = {**os.environ, "OMP_NUM_THREADS": str(config.threads)}
                    command = [sys.executable, "-m", "trimtab", "rl", str(file)]
                    process = subprocess.Popen(
                        command, stdout=log, stderr=subprocess.STDOUT, env=env
                    )
                going.append((f"{label}, seed {point['seed']}", folder, process))
            time.sleep(0.2)
            for one in list(going):
                label, folder, process = one
                if process.poll() is None:
                    continue
                going.remove(one)
                if process.returncode:
                    failed.append(f"{label}: exit {process.returncode}, see {folder / 'log'}")
                console.print(f"  {label}: {'done' if not process.returncode else 'FAILED'}")
    finally:
        for _, _, process in going:
            process.terminate()
    if len(failed) == len(planned):
        raise DataError(f"every run of the sweep failed, the first: {failed[0]}")
    for line in failed:
        console.print(f"[bold]failed[/bold] {line}", markup=True)


def figures(config: SweepConfig, folder: Path) -> dict[str, Any] | None:
    """Means over a run's last steps, and the path it took; None for a run without metrics."""
    rows = read_metrics(folder)
    if not rows:
        return None
    end = rows[-config.tail :]

    def mean(name: str) -> float | None:
        values = [float(r[name]) for r in end if isinstance(r.get(name), (int, float))]
        return float(np.mean(values)) if values else None

    gold = f"reward/{config.gold}"
    path = [[r.get("objective/kl"), r.get("reward/mean"), r.get(gold)] for r in rows]
    spread = [float(r[gold]) for r in end if isinstance(r.get(gold), (int, float))]
    return {
        "kl": mean("objective/kl"), "reward": mean("reward/mean"), "gold": mean(gold),
        "gold_error": float(np.std(spread) / math.sqrt(len(spread))) if len(spread) > 1 else None,
        "length": mean("completion/length"), "entropy": mean("objective/entropy"), "path": path,
    }  # fmt: skip


def recommend(points: list[dict[str, Any]], keys: list[str]) -> dict[str, list[Any]]:
    """For each key the values of the points whose gold is within two standard errors of the best;
    by the reward where there is no gold."""
    by = "gold" if all(p.get("gold") is not None for p in points) else "reward"
    best = max(points, key=lambda p: p[by])

    def near(p: dict[str, Any]) -> bool:
        error = math.hypot(best.get("error") or 0.0, p.get("error") or 0.0)
        return p[by] >= best[by] - 2 * error

    good = [p for p in points if near(p)]
    return {k: sorted({p[k] for p in good}, key=lambda v: (str(type(v)), v)) for k in keys}


def main(config: SweepConfig) -> dict[str, Any]:
    """Run what is missing, then write sweep.json and sweep.html.

    Returns:
        ``points`` (means over seeds), ``recommended`` values of each key.

    Raises:
        ConfigError: a point of the grid is refused, before any run starts.
        DataError: every run failed.
    """
    if (Path(config.out) / "metrics.jsonl").exists():
        raise ConfigError(f"out: {config.out} is a run of its own; give the sweep another --out")
    planned = plan(config)
    _run(config, planned)
    keys = list(flatten(config.grid))
    grouped: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for label, point, folder, _ in planned:
        found = figures(config, folder)
        if found is not None:
            grouped.setdefault(label, []).append((point, found))
    points = [_point(label, runs, keys) for label, runs in grouped.items()]
    told: dict[str, Any] = {"points": points, "recommended": recommend(points, keys)}
    out = Path(config.out)
    write_atomic(out / "sweep.json", to_json(told, indent=1).encode())
    page = _page(out, config, points, told["recommended"])
    for p in points:
        console.print(
            f"  {p['label']:<28} KL {_said(p['kl'])}  reward {_said(p['reward'])}  gold {_said(p['gold'])}"
        )
    advice = "; ".join(f"{k}: {_range(v)}" for k, v in told["recommended"].items())
    console.print(f"[bold]sweep[/bold]: recommended {advice} -> {page}", markup=True)
    return told


def _point(
    label: str, runs: list[tuple[dict[str, Any], dict[str, Any]]], keys: list[str]
) -> dict[str, Any]:
    made: dict[str, Any] = {"label": label, **{k: runs[0][0][k] for k in keys}, "seeds": len(runs)}
    for name in ("kl", "reward", "gold", "length", "entropy"):
        values = [f[name] for _, f in runs if f[name] is not None]
        made[name] = float(np.mean(values)) if values else None
    golds = [f["gold"] for _, f in runs if f["gold"] is not None]
    # Between seeds where there are several; else between the last steps of the one.
    made["error"] = (
        float(np.std(golds, ddof=1) / math.sqrt(len(golds)))
        if len(golds) > 1
        else runs[0][1]["gold_error"]
    )
    made["path"] = runs[0][1]["path"]
    return made


def _said(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _range(values: list[Any]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _page(
    out: Path, config: SweepConfig, points: list[dict[str, Any]], advice: dict[str, list[Any]]
) -> Path:
    by = "gold" if points[0]["gold"] is not None else "reward"
    best = max(points, key=lambda p: p[by] if p[by] is not None else -math.inf)
    said = "; ".join(f"{k} {_range(v)}" for k, v in advice.items())
    text = (
        f"Best at the end: {best['label']}, {by} {_said(best[by])} at a KL of {_said(best['kl'])} nats. "
        "Values whose interval reaches the best are recommended alike; between them take the one "
        "with the smaller KL."
    )
    charts = [
        _frontier(points, 2, "Gold", "The higher and the further left the better; a path that bends down has gone too far."),
        _frontier(points, 1, "Reward", "Rises with distance for every value: it cannot tell which is best."),
        _ends(points, advice),
    ]  # fmt: skip
    rows = [
        (
            p["label"],
            str(p["seeds"]),
            *(_said(p[k]) for k in ("kl", "reward", "gold", "length", "entropy")),
        )
        for p in points
    ]
    head = ("Values", "Seeds", "KL (nats)", "Reward", "Gold", "Length (tokens)", "Entropy (nats)")
    tiles = [Tile(k, _range(v), "recommended") for k, v in advice.items()]
    html = render(
        [
            Section("", "", [Verdict(f"Recommended: {said}", text, "good")], tiles),
            Section(
                "The frontier", "Each line is one run's path from the start outwards.",
                charts=[c for c in charts if c],
            ),
            Section("Every point", f"Means over the last {config.tail} steps.", tables=[Table(head, rows)]),
        ],
        "Sweep",
        f"{len(points)} points",
    )  # fmt: skip
    write_atomic(out / "sweep.html", html.encode())
    return out / "sweep.html"


def _frontier(points: list[dict[str, Any]], at: int, what: str, see: str) -> Chart | None:
    lines: list[Line] = []
    for p in points[:6]:
        held = [r for r in p["path"] if r[0] is not None and r[at] is not None]
        size = max(1, len(held) // 12)
        parts = [held[i : i + size] for i in range(0, len(held), size)]
        x = [math.sqrt(max(0.0, float(np.mean([r[0] for r in part])))) for part in parts]
        y = [float(np.mean([r[at] for r in part])) for part in parts]
        lines.append(Line(p["label"], x, y))
    return line_chart(f"{what} by distance", lines, "√KL (√nats)", f"Mean {what.lower()}", see)


def _ends(points: list[dict[str, Any]], advice: dict[str, list[Any]]) -> Chart | None:
    """Gold at the end over the first numeric key."""
    key = next((k for k in advice if all(isinstance(p[k], (int, float)) for p in points)), None)
    if key is None:
        return None
    ordered = sorted(points, key=lambda p: p[key])
    x = [float(p[key]) for p in ordered]
    log = min(x) > 0 and max(x) / min(x) > 20
    lines = [
        Line(
            "Gold at the end",
            [math.log10(v) if log else v for v in x],
            [p["gold"] for p in ordered],
            0,
        )
    ]
    title = f"Gold by {key.rpartition('.')[2]}"
    axis = f"{'log10 of ' if log else ''}{key}"
    return line_chart(
        title,
        lines,
        axis,
        "Mean gold",
        f"The top is where {key} is best; {number(len(points))} points.",
    )
