"""The report of a recipe's folder: the charts that the recipe declares, read from the folder alone."""

import logging
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import Field

from trimtab.config import Config, build
from trimtab.errors import DataError
from trimtab.report.charts import (
    Array,
    Bar,
    Chart,
    Line,
    bar_chart,
    bounds,
    calibration_chart,
    grouped_bars,
    line_chart,
    number,
)
from trimtab.report.metric_charts import STEP, change, curves, tail_mean, tail_noise
from trimtab.report.run_report import choose, clip, flatten, report_run, score_text
from trimtab.report.sections import Answer, Pick, Section, Table, Tile, Verdict, render
from trimtab.runs import MetricTable, read_object, read_summary, write_atomic

log = logging.getLogger(__name__)
RECIPE_FILE = "recipe.yaml"
"""What a recipe leaves in its folder for its report: ``about`` and ``charts``."""


class DeclaredChart(Config):
    """Base of what a recipe may declare under ``charts:``; each is a section of the report."""

    title: str
    lead: str = ""
    """A sentence below the title."""
    see: str = ""
    """What to see in the chart."""

    @abstractmethod
    def section(self, folder: Path, figures: Mapping[str, Any]) -> Section:
        """The section, from the recipe's folder and its ``summary.json``; empty without data."""


class Scores(DeclaredChart):
    """One bar per model, and whether one of them beats another."""

    type: Literal["scores"] = "scores"
    unit: str = "Mean score"
    bars: dict[str, str]
    """Label -> figure of ``summary.json``; its interval is that name with _low and _high."""
    better: tuple[str, str] | None = None
    """Two labels: the first should be better than the second."""
    win_rate: str | None = None
    """Figure of the first one's win rate; its interval is that name with _low and _high."""
    tiles: dict[str, str] = Field(default_factory=dict[str, str])
    """More figures by label, shown as numbers."""

    def section(self, folder: Path, figures: Mapping[str, Any]) -> Section:
        values = _figures(figures, self.bars)
        verdicts = [self._verdict(values, figures)] if self._complete(values) else []
        bars: list[Bar] = []
        tiles: list[Tile] = []
        for i, (label, value) in enumerate(values.items()):
            low, high = (_figure(figures, f"{self.bars[label]}_{end}") for end in ("low", "high"))
            bars.append(Bar(label, value, low, high, colour=i))
            has_interval = low is not None and high is not None
            note = f"95 % interval {low:.3f} to {high:.3f}" if has_interval else self.unit
            tiles.append(Tile(label, f"{value:.3f}", note))
        chart = bar_chart(self.title, bars, self.unit, self.see)
        tiles += [Tile(k, number(v)) for k, v in _figures(figures, self.tiles).items()]
        return Section(self.title, self.lead, verdicts, tiles, [chart])

    def _complete(self, values: Mapping[str, float]) -> bool:
        return self.better is not None and all(label in values for label in self.better)

    def _verdict(self, values: Mapping[str, float], figures: Mapping[str, Any]) -> Verdict:
        assert self.better is not None
        first, second = self.better
        text = (
            f"{self.unit}: {values[second]:.2f} for {second} and {values[first]:.2f} for {first}."
        )
        rate, low, high = (
            _figure(figures, f"{self.win_rate}{end}") if self.win_rate else None
            for end in ("", "_low", "_high")
        )
        if rate is not None:
            interval = (
                "" if low is None or high is None else f" (95 % interval {low:.0%} to {high:.0%})"
            )
            text += f" {first} wins against {second} on {rate:.0%} of the prompts{interval}, ties counting half."
        if values[first] > values[second] and (low is None or low > 0.5):
            return Verdict(f"{first} is better than {second}", text, "good")
        if values[first] < values[second] and (high is None or high < 0.5):
            return Verdict(f"{first} is worse than {second}", text, "bad")
        text += " The interval holds 50 % or the two figures disagree, so the change may be chance."
        return Verdict(f"No clear difference between {first} and {second}", text, "fair")


class Groups(DeclaredChart):
    """Bars side by side in named groups."""

    type: Literal["groups"] = "groups"
    unit: str = "Mean score"
    bars: dict[str, str]
    """Label -> a figure that is a mapping from group to number."""

    def section(self, folder: Path, figures: Mapping[str, Any]) -> Section:
        groups: dict[str, list[Bar]] = {}
        for i, (label, name) in enumerate(self.bars.items()):
            numbers = _lookup(figures, name)
            for group, value in numbers.items() if isinstance(numbers, Mapping) else ():
                groups.setdefault(group, []).append(Bar(label, float(value), colour=i))
        chart = grouped_bars(self.title, groups, self.unit, self.see)
        return Section(self.title, self.lead, charts=[chart])


class ProxyGold(DeclaredChart):
    """The score that is trained on against the ground truth, of one or more runs on one scale."""

    type: Literal["proxy_gold"] = "proxy_gold"
    stages: dict[str, str]
    """Label -> stage."""
    proxy: str = "reward/mean"
    gold: str = "reward/gold"
    """Metrics of the stages."""

    def section(self, folder: Path, figures: Mapping[str, Any]) -> Section:
        changes = {
            label: [change(table, m) for m in (self.proxy, self.gold)]
            for label, stage in self.stages.items()
            for table in [MetricTable.read(folder / stage)]
        }
        verdicts = [v for label, both in changes.items() if (v := self._verdict(label, *both))]
        golds = np.concatenate([[0.0], *(gold[1] for _, gold in changes.values())])
        widest = float(np.abs(golds).max())
        across = bounds((float(golds.min()), widest), zero=True)
        charts: list[Chart | None] = []
        for label, (proxy, gold) in changes.items():
            reach = float(np.abs(proxy[1]).max(initial=0.0))
            # The proxy has a unit of its own: it is shrunk to the reach of gold, never stretched.
            factor = widest / reach if 0 < widest < reach else 1.0
            scaled = f" Proxy divided by {1 / factor:.1f} to share the axis." if factor < 1 else ""
            lines = [
                Line("Proxy, what is trained on", proxy[0], proxy[1] * factor, 1),
                Line("Gold, what is wanted", *gold, 0),
            ]
            unit = "Change since the start (gold points)"
            charts.append(line_chart(label, lines, STEP, unit, self.see + scaled, across))
        return Section(self.title, self.lead, verdicts, charts=charts)

    @staticmethod
    def _verdict(
        label: str,
        proxy: tuple[Array, Array],
        gold: tuple[Array, Array],
    ) -> Verdict | None:
        rise, truth = tail_mean(proxy[1]), tail_mean(gold[1])
        if rise is None or truth is None:
            return None
        noise = tail_noise(gold[1])
        text = f"The proxy, which is trained on, changed by {rise:+.2f} and gold by {truth:+.2f}"
        if rise > 0 and truth > noise:
            return Verdict(f"{label}: the reward is real", f"{text}: they rose together.", "good")
        if rise > 0 and truth <= 0:
            return Verdict(
                f"{label}: the reward is hacked",
                f"{text}: the completions did not get better.",
                "bad",
            )
        return Verdict(
            f"{label}: no proof that the reward is real",
            f"{text}; gold's noise is {noise:.2f}.",
            "fair",
        )


class Calibration(DeclaredChart):
    """Accuracy and calibration of a reward model."""

    type: Literal["calibration"] = "calibration"
    stage: str

    def section(self, folder: Path, figures: Mapping[str, Any]) -> Section:
        measured = read_object(folder / self.stage / "calibration.json")
        evaluated = read_summary(folder / self.stage).get("eval") or {}
        accuracy, ceiling, error = (
            value if (value := _figure(measured, k)) is not None else _figure(evaluated, k)
            for k in ("accuracy", "ceiling", "ece")
        )
        verdicts: list[Verdict] = []
        bars: list[Bar] = []
        if accuracy is not None:
            bars.append(Bar("Reward model", accuracy, colour=0))
            text = f"It prefers the better completion in {accuracy:.1%} of held-out pairs"
            tone = "good" if accuracy > 0.6 else "bad"
            if ceiling is not None:
                bars.append(Bar("Ceiling", ceiling, colour=5))
                text += f"; the labels are noisy, so nothing can exceed {ceiling:.1%}"
                tone = "good" if accuracy - 0.5 > 0.8 * (ceiling - 0.5) else "fair"
            if error is not None:
                text += f". Its confidence is off by {error:.1%} on average"
            verdicts.append(Verdict("How good is the reward model?", text + ".", tone))
        near = "The nearer to the ceiling the better; the dashed line is guessing."
        diagonal = (
            "Dots on the dashed diagonal mean that its confidence can be trusted; larger dots hold "
            "more pairs."
        )
        charts = [
            bar_chart("Accuracy", bars, "Share of held-out pairs right", near, 0.5),
            calibration_chart("Calibration", measured.get("bins", []), diagonal),
        ]
        return Section(self.title, self.lead, verdicts, charts=charts)


class Curves(DeclaredChart):
    """Metrics of a stage over its steps."""

    type: Literal["curves"] = "curves"
    stage: str
    metrics: dict[str, str] = Field(default_factory=dict[str, str])
    """Metric -> its unit; without them every metric that has a chart of its own."""

    def section(self, folder: Path, figures: Mapping[str, Any]) -> Section:
        table = MetricTable.read(folder / self.stage)
        if not self.metrics:
            return Section(self.title, self.lead, charts=curves(table, rest=False))
        drawn = [
            line_chart(f"{self.title}: {m}", [Line(m, *table.series(m))], STEP, unit, self.see)
            for m, unit in self.metrics.items()
        ]
        return Section(self.title, self.lead, charts=drawn)


class FigureTable(DeclaredChart):
    """Figures as a table, one column per model."""

    type: Literal["table"] = "table"
    columns: tuple[str, ...]
    rows: dict[str, dict[str, str]]
    """Label -> figure by column."""

    def section(self, folder: Path, figures: Mapping[str, Any]) -> Section:
        rows = [
            (label, *(number(values[c]) if c in values else "–" for c in self.columns))
            for label, names in self.rows.items()
            if (values := _figures(figures, names))
        ]
        return Section(self.title, self.lead, tables=[Table(("", *self.columns), rows)])


class Completions(DeclaredChart):
    """Completions of several models to one prompt: largest gains, largest losses, random ones."""

    type: Literal["completions"] = "completions"
    stage: str = "compare"
    models: dict[str, str]
    """Label -> model of the stage; gains are of the second one over the first."""
    score: str = "gold"
    count: int = 3
    """Of each sort."""

    def section(self, folder: Path, figures: Mapping[str, Any]) -> Section:
        file = folder / self.stage / "comparison.parquet"
        if not file.exists():
            return Section("")
        try:
            rows = pq.read_table(file).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file}: not a readable table ({error}); remove it") from error
        (first, before), (second, after), *_ = self.models.items()

        def gain(row: Mapping[str, Any]) -> float:
            scores = [float(row.get(f"{self.score}_{m}") or 0) for m in (after, before)]
            return scores[0] - scores[1]

        rows.sort(key=gain, reverse=True)
        picks = [
            Pick(
                clip(row.get("prompt")),
                [
                    Answer(
                        label, clip(row[m]), score_text(row.get(f"{self.score}_{m}"), self.score)
                    )
                    for label, m in self.models.items()
                    if row.get(m) is not None
                ],
                f"{why}: {self.score} changed by {gain(row):+.2f} from {first} to {second}"
                + (f" · {row['kind']}" if row.get("kind") else ""),
            )
            for why, row in choose(rows, self.count)
        ]
        return Section(self.title, self.lead, picks=picks)


AnyChart = Annotated[
    Scores | Groups | ProxyGold | Calibration | Curves | FigureTable | Completions,
    Field(discriminator="type"),
]


class RecipePage(Config):
    """The content of ``recipe.yaml`` in a recipe's folder."""

    about: str = ""
    charts: tuple[AnyChart, ...] = ()


def report_recipe(folder: str | Path) -> Path:
    """Write ``report.html`` of a recipe's folder: its declared charts, or curves of every stage.

    Raises:
        DataError: the folder is not there, or a file of it cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such run folder; give the folder that holds summary.json")
    figures = read_summary(folder)
    file = folder / RECIPE_FILE
    values = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else {}
    page = build(RecipePage, values, str(file))
    stages = [p.parent.name for p in sorted(folder.glob("*/metrics.jsonl"))]
    charts = page.charts or [Curves(title=name, stage=name) for name in stages]
    every = Table(("Figure", "Value"), flatten(figures))
    sections = [
        *(chart.section(folder, figures) for chart in charts),
        Section("Every figure", "All of summary.json.", tables=[every]),
    ]
    title = page.about or f"Recipe {folder.resolve().name}"
    html = render(sections, title, f"trimtab recipe, run {folder.resolve().name}")
    write_atomic(folder / "report.html", html.encode())
    return folder / "report.html"


def _lookup(values: Mapping[str, Any], name: str) -> Any:
    """What is under a dotted name; None when missing."""
    place: Any = values
    for part in name.split("."):
        place = place.get(part) if isinstance(place, Mapping) else None
    return place


def _figure(values: Mapping[str, Any], name: str) -> float | None:
    value = _lookup(values, name)
    return float(value) if isinstance(value, (int, float)) else None


def _figures(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, float]:
    """The numbers that are there, by label."""
    return {k: v for k, name in names.items() if (v := _figure(values, name)) is not None}


class ReportConfig(Config):
    """Configuration of ``trimtab report RUN``."""

    run: str
    """The folder of a training run or of a recipe."""


def main(config: ReportConfig) -> Path:
    """Write ``report.html`` of a run or of a recipe's folder, and log where it is."""
    folder = Path(config.run)
    is_recipe = (folder / RECIPE_FILE).exists() or any(folder.glob("*/metrics.jsonl"))
    page = report_recipe(folder) if is_recipe else report_run(folder)
    log.info("%s", page)
    return page
