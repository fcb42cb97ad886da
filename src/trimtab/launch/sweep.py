"""A grid of short runs in parallel processes, and the frontier of gold and reward against KL."""

import hashlib
import itertools
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from pydantic import Field, model_validator

from trimtab.config import Config, build, override, set_path
from trimtab.errors import ConfigError
from trimtab.launch.sweep_runs import PlannedRun, run_all
from trimtab.report.charts import Chart, Line, line_chart, number
from trimtab.report.sections import Section, Table, Tile, Verdict, render
from trimtab.runs import read_metrics, to_json, write_atomic
from trimtab.runs.job_launch import JobLaunchSpec
from trimtab.train.rl import RLConfig

log = logging.getLogger(__name__)


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
    """Runs at once; 0 takes half the cores of this machine."""
    threads: int = Field(default=1, gt=0)
    """Of each run."""
    launch: JobLaunchSpec = JobLaunchSpec()
    """``type: ray`` spreads the runs over a cluster; ``workers: 0`` is then as many as it has room for."""

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, values: Any) -> Any:
        """A configuration of ``trimtab rl`` with the keys of a sweep added to it is enough."""
        if not isinstance(values, dict) or "rl" in values:
            return values
        values = cast("dict[str, Any]", values)
        own = {k: v for k, v in values.items() if k in cls.model_fields}
        return {**own, "rl": {k: v for k, v in values.items() if k not in cls.model_fields}}


FIGURES = {
    "kl": "objective/kl",
    "reward": "reward/mean",
    "length": "completion/length",
    "entropy": "objective/entropy",
}
"""Metric of each figure of a point; that of gold has the name of its reward."""


@dataclass(frozen=True, slots=True)
class Point:
    """Means over the last steps of a run, or over the seeds of one point of the grid."""

    label: str
    values: dict[str, Any]
    seeds: int
    kl: float | None
    reward: float | None
    gold: float | None
    length: float | None
    entropy: float | None
    error: float | None
    """Standard error of ``gold``: between seeds, or between the last steps where there is one."""
    path: list[tuple[float | None, float | None, float | None]]
    """KL, reward and gold of each step, of the first seed."""

    def as_row(self) -> dict[str, Any]:
        """As written in sweep.json: the values beside the figures."""
        figures = asdict(self)
        return {"label": figures.pop("label"), **figures.pop("values"), **figures}


def flatten(grid: dict[str, Any], path: str = "") -> dict[str, list[Any]]:
    """Dotted keys with their values.

    Raises:
        ConfigError: a key has no list of values.

    >>> flatten({"method": {"kl": {"beta": [0, 1]}}})
    {'method.kl.beta': [0, 1]}
    """
    lists: dict[str, list[Any]] = {}
    for key, value in grid.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            lists |= flatten(cast("dict[str, Any]", value), name)
        elif isinstance(value, list) and value:
            lists[name] = cast("list[Any]", value)
        else:
            raise ConfigError(f"grid.{name}: give a list of values, as [0.01, 0.1]")
    return lists


def plan(config: SweepConfig) -> list[PlannedRun]:
    """Every run, checked before any starts.

    Raises:
        ConfigError: a value is refused; the point is named.
    """
    keys = flatten(config.grid)
    runs: list[PlannedRun] = []
    for values in itertools.product(*keys.values()):
        point = dict(zip(keys, values, strict=True))
        label = ", ".join(f"{k.rpartition('.')[2]} {v}" for k, v in point.items())
        for seed in config.seeds:
            over: dict[str, Any] = {"loop": {"seed": seed}}
            for key, value in point.items():
                set_path(over, key, value)
            settings = override(RLConfig, config.rl, over)
            if config.steps is not None:
                settings["steps"] = config.steps
            text = json.dumps(settings, sort_keys=True, default=str)
            folder = Path(config.out) / hashlib.sha256(text.encode()).hexdigest()[:10]
            settings["out"] = str(folder)
            build(RLConfig, settings, f"sweep: {label}, seed {seed}")
            runs.append(PlannedRun(label, point, seed, folder, settings))
    return runs


def read_point(config: SweepConfig, run: PlannedRun) -> Point | None:
    """The end of a run; None for one without metrics."""
    rows = read_metrics(run.folder)
    if not rows:
        return None

    def values_of(name: str) -> list[float]:
        last = rows[-config.tail :]
        return [float(r[name]) for r in last if isinstance(r.get(name), (int, float))]

    gold = f"reward/{config.gold}"
    golds = values_of(gold)
    return Point(
        run.label,
        run.values,
        seeds=1,
        gold=_mean(golds),
        error=float(np.std(golds) / math.sqrt(len(golds))) if len(golds) > 1 else None,
        path=[(r.get("objective/kl"), r.get("reward/mean"), r.get(gold)) for r in rows],
        **{figure: _mean(values_of(metric)) for figure, metric in FIGURES.items()},
    )


def _over_seeds(runs: list[Point]) -> Point:
    """Runs of one point of the grid as their mean."""
    golds = [run.gold for run in runs if run.gold is not None]
    return replace(
        runs[0],
        seeds=len(runs),
        error=float(np.std(golds, ddof=1) / math.sqrt(len(golds)))
        if len(golds) > 1
        else runs[0].error,
        **{k: _mean([getattr(run, k) for run in runs]) for k in ("gold", *FIGURES)},
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """Of the values that are there."""
    present = [v for v in values if v is not None]
    return float(np.mean(present)) if present else None


def recommend(points: list[Point], keys: list[str]) -> dict[str, list[Any]]:
    """For each key the values of the points whose gold is within two standard errors of the best;
    by the reward where there is no gold."""
    by = "gold" if all(p.gold is not None for p in points) else "reward"
    best = max(points, key=lambda p: getattr(p, by))

    def is_near(p: Point) -> bool:
        error = math.hypot(best.error or 0.0, p.error or 0.0)
        return getattr(p, by) >= getattr(best, by) - 2 * error

    good = [p for p in points if is_near(p)]
    return {k: sorted({p.values[k] for p in good}, key=lambda v: (str(type(v)), v)) for k in keys}


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
    runs = plan(config)
    run_all(runs, config.launch, config.workers, config.threads)
    by_label: dict[str, list[Point]] = {}
    for run in runs:
        if (end := read_point(config, run)) is not None:
            by_label.setdefault(run.label, []).append(end)
    points = [_over_seeds(ends) for ends in by_label.values()]
    advice = recommend(points, list(flatten(config.grid)))
    summary = {"points": [p.as_row() for p in points], "recommended": advice}
    out = Path(config.out)
    write_atomic(out / "sweep.json", to_json(summary, indent=1).encode())
    page = _page(out, config, points, advice)
    for p in points:
        ends = f"KL {_text(p.kl)}  reward {_text(p.reward)}  gold {_text(p.gold)}"
        log.info("  %-28s %s", p.label, ends)
    values = "; ".join(f"{k}: {_range(v)}" for k, v in advice.items())
    log.info("sweep: recommended %s -> %s", values, page)
    return summary


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _range(values: list[Any]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _page(
    out: Path, config: SweepConfig, points: list[Point], advice: dict[str, list[Any]]
) -> Path:
    by = "gold" if points[0].gold is not None else "reward"
    best = max(points, key=lambda p: -math.inf if getattr(p, by) is None else getattr(p, by))
    recommended = "; ".join(f"{k} {_range(v)}" for k, v in advice.items())
    text = (
        f"Best at the end: {best.label}, {by} {_text(getattr(best, by))} at a KL of "
        f"{_text(best.kl)} nats. Values whose interval reaches the best are recommended alike; "
        "between them take the one with the smaller KL."
    )
    bends = "Higher and further left is better; a path that bends down has gone too far."
    rises = "Rises with distance for every value: it cannot tell which is best."
    charts = [
        _frontier(points, 2, "Gold", bends),
        _frontier(points, 1, "Reward", rises),
        _gold_by_value(points, advice),
    ]
    rows = [
        (p.label, str(p.seeds), *map(_text, (p.kl, p.reward, p.gold, p.length, p.entropy)))
        for p in points
    ]
    head = ("Values", "Seeds", "KL (nats)", "Reward", "Gold", "Length (tokens)", "Entropy (nats)")
    tiles = [Tile(k, _range(v), "recommended") for k, v in advice.items()]
    lead = "Each line is one run's path from the start outwards."
    means = f"Means over the last {config.tail} steps."
    html = render(
        [
            Section("", "", [Verdict(f"Recommended: {recommended}", text, "good")], tiles),
            Section("The frontier", lead, charts=charts),
            Section("Every point", means, tables=[Table(head, rows)]),
        ],
        "Sweep",
        f"{len(points)} points",
    )
    write_atomic(out / "sweep.html", html.encode())
    return out / "sweep.html"


def _frontier(points: list[Point], column: int, name: str, see: str) -> Chart | None:
    """A column of the paths against the square root of the KL, in at most a dozen means a run."""
    lines: list[Line] = []
    for p in points[:6]:
        steps = [(r[0], r[column]) for r in p.path if r[0] is not None and r[column] is not None]
        size = max(1, len(steps) // 12)
        parts = [np.array(steps[i : i + size]) for i in range(0, len(steps), size)]
        x = [math.sqrt(max(0.0, float(part[:, 0].mean()))) for part in parts]
        lines.append(Line(p.label, x, [float(part[:, 1].mean()) for part in parts]))
    return line_chart(f"{name} by distance", lines, "√KL (√nats)", f"Mean {name.lower()}", see)


def _gold_by_value(points: list[Point], advice: dict[str, list[Any]]) -> Chart | None:
    """Gold at the end over the first numeric key."""
    numeric = (k for k in advice if all(isinstance(p.values[k], (int, float)) for p in points))
    key = next(numeric, None)
    if key is None:
        return None
    ordered = sorted(points, key=lambda p: p.values[key])
    x = [float(p.values[key]) for p in ordered]
    is_log = min(x) > 0 and max(x) / min(x) > 20
    golds = [p.gold for p in ordered]
    line = Line("Gold at the end", [math.log10(v) if is_log else v for v in x], golds, 0)
    return line_chart(
        f"Gold by {key.rpartition('.')[2]}",
        [line],
        f"{'log10 of ' if is_log else ''}{key}",
        "Mean gold",
        f"The top is where {key} is best; {number(len(points))} points.",
    )
