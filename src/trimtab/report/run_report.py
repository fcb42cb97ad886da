"""The reports of one training run and of a whole pipeline, read from the run folder alone."""

from __future__ import annotations

import itertools
import json
import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from trimtab.config import Config
from trimtab.errors import DataError
from trimtab.report.charts import (
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
from trimtab.report.metric_charts import STEP, curves, series
from trimtab.report.sections import (
    Answer,
    Pick,
    Section,
    Table,
    Tile,
    Verdict,
    render,
)
from trimtab.runs import read_findings, read_metrics, read_samples, read_summary, write_atomic

log = logging.getLogger(__name__)


class ReportConfig(Config):
    """Configuration of ``trimtab report RUN``."""

    run: str
    """The folder of a training run or of a recipe."""


def main(config: ReportConfig) -> Path:
    """Write ``report.html`` of a run or of a recipe's folder, and log where it is."""
    folder = Path(config.run)
    is_recipe = any(folder.glob("*/metrics.jsonl"))
    page = report_pipeline(folder) if is_recipe else report_run(folder)
    log.info("%s", page)
    return page


LONGEST = 1500
PARTS = ("helpful", "honest", "harmless", "concise")


def _figure(summary: Mapping[str, Any], name: str) -> float | None:
    """The number under a dotted name; None when missing."""
    place: Any = summary
    for part in name.split("."):
        place = cast(Mapping[str, Any], place).get(part) if isinstance(place, Mapping) else None
    return float(place) if isinstance(place, (int, float)) else None


def _clip(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"


def _score(value: Any, label: str) -> str:
    return f"{label} {float(value):.2f}" if isinstance(value, (int, float)) else ""


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"95 % interval {low:.0%} to {high:.0%}"


def _mean_span(summary: Mapping[str, Any], name: str) -> str:
    """The interval of a mean, from the figures ``name_low`` and ``name_high``."""
    low, high = (_figure(summary, f"{name}_{end}") for end in ("low", "high"))
    return "" if low is None or high is None else f"95 % interval {low:.3f} to {high:.3f}"


def _write(folder: Path, page: str) -> Path:
    path = folder / "report.html"
    write_atomic(path, page.encode())
    return path


def report_run(folder: str | Path) -> Path:
    """Write ``report.html`` of one training run from its metrics, samples, findings and summary.

    Raises:
        DataError: the folder is not there, or a file of it cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such run folder; give the folder that holds metrics.jsonl")
    rows = read_metrics(folder)
    tiles: list[Tile] = []
    if rows:
        first, last = rows[0], rows[-1]
        tiles.append(Tile("Steps", number(float(last["step"])), "optimiser steps recorded"))
        if isinstance(first.get("time"), (int, float)) and isinstance(
            last.get("time"), (int, float)
        ):
            spent = float(last["time"]) - float(first["time"])
            tiles.append(Tile("Time", f"{number(spent)} s", "between first and last record"))
        for name in ("loss", "reward/mean", "reward/gold", "objective/kl", "completion/length"):
            _, values = series(rows, name)
            if values and values[0] is not None and values[-1] is not None:
                tiles.append(
                    Tile(name, number(values[-1]), f"from {number(values[0])} at the start")
                )
    summary = read_summary(folder)
    flat = _flatten(summary)
    table = Table(("Figure", "Value"), flat)
    findings = [
        Verdict(
            str(f.get("title") or f.get("code") or f.get("name") or "Finding"),
            " ".join(str(f[k]) for k in ("message", "evidence", "advice", "remedy") if f.get(k)),
            {"critical": "bad", "error": "bad", "ok": "good"}.get(str(f.get("severity")), "fair"),
        )
        for f in read_findings(folder)
    ]
    audit = summary.get("audit")
    if isinstance(audit, Mapping) and "why" in audit:
        why = str(cast(Mapping[str, Any], audit)["why"])
        findings.append(Verdict("What was handed over", why, "fair"))
    page = render(
        [
            Section("", "The last recorded figures of this run.", findings, tiles),
            Section("Curves", "", charts=curves(rows, rest=True)),
            Section("Answers", "From the last sampled step.", picks=_sample_picks(folder)),
            Section("Summary", "Every figure of summary.json.", tables=[table] if flat else []),
        ],
        f"Run {folder.resolve().name}",
    )
    return _write(folder, page)


def _flatten(values: Mapping[str, Any], path: str = "") -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    for name, value in values.items():
        full = f"{path}.{name}" if path else name
        if isinstance(value, Mapping):
            out += _flatten(cast(Mapping[str, Any], value), full)
        else:
            number_like = isinstance(value, (int, float)) and not isinstance(value, bool)
            out.append((full, number(value) if number_like else _clip(value)))
    return out


def _sample_picks(folder: Path, count: int = 3) -> list[Pick]:
    rows = read_samples(folder)
    last = [r for r in rows if r.get("step") == rows[-1].get("step")] if rows else []
    scored = [r for r in last if isinstance(r.get("reward"), (int, float))]
    scored.sort(key=lambda r: float(r["reward"]), reverse=True)
    kinds = _choose(scored or last, count)
    return [
        Pick(
            _clip(r.get("prompt")),
            [Answer("Answer", _clip(r.get("completion")), _score(r.get("reward"), "reward"))],
            why,
        )
        for why, r in kinds
    ]


def _choose(ranked: Sequence[dict[str, Any]], count: int) -> list[tuple[str, dict[str, Any]]]:
    """Best, worst and random rows of a list ranked best first, none twice."""
    if len(ranked) <= 3 * count:
        return [("Sampled answer", row) for row in ranked]
    middle = random.Random(0).sample(range(count, len(ranked) - count), count)
    return [
        *(("Among the best", row) for row in ranked[:count]),
        *(("Among the worst", row) for row in ranked[-count:]),
        *(("Picked at random", ranked[i]) for i in sorted(middle)),
    ]


def report_pipeline(folder: str | Path) -> Path:
    """Write ``report.html`` of a pipeline folder (stages ``sft``, ``reward``, ``ppo``, ``flaw``,
    ``compare/comparison.parquet``, ``reward/calibration.json``, ``summary.json``); missing parts are
    left out.

    Raises:
        DataError: the folder is not there, or a file of it cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such run folder; give the folder that holds summary.json")
    summary = read_summary(folder)
    sound, flawed = read_metrics(folder / "ppo"), read_metrics(folder / "flaw")
    sections = [
        _reached(summary),
        _real(summary, sound, flawed),
        _gold_parts(summary),
        _reward_model(folder, summary),
        _side_by_side(folder),
        Section(
            "RL training",
            "How the sound run moved, step by step.",
            charts=curves(sound, rest=False, skip=("reward/mean", "reward/gold")),
        ),
        _stages(folder),
        Section(
            "Every figure",
            "All of summary.json.",
            tables=[Table(("Figure", "Value"), flat)] if (flat := _flatten(summary)) else [],
        ),
    ]
    title = "From a base model to an aligned one"
    return _write(folder, render(sections, title, f"trimtab pipeline, run {folder.resolve().name}"))


def _reached(summary: Mapping[str, Any]) -> Section:
    base, sft, rl = (_figure(summary, f"gold.{k}") for k in ("base", "sft", "rl"))
    rate, low, high = (
        _figure(summary, f"gold.{k}") for k in ("win_rate", "win_rate_low", "win_rate_high")
    )
    verdicts: list[Verdict] = []
    if sft is not None and rl is not None:
        start = f"{base:.2f} (base) to " if base is not None else ""
        text = f"The gold score, which is what people really wanted, went from {start}{sft:.2f} (SFT) to {rl:.2f} (RL)."
        tone, head = "fair", "RL made no clear difference to the gold score"
        if rate is not None:
            span = f" ({_span(low, high)})" if low is not None and high is not None else ""
            text += f" On held-out prompts RL's answer beats SFT's {rate:.0%} of the time{span}, ties counting half."
        if rl > sft and (low is None or low > 0.5):
            tone, head = "good", "RL made the answers better"
        elif rl < sft and (high is None or high < 0.5):
            tone, head = "bad", "RL made the answers worse"
        elif low is not None and high is not None:
            text += (
                " The interval holds 50 % or the two figures disagree, so the change may be chance."
            )
        verdicts.append(Verdict(head, text, tone))
    names = (("gold.base", "Gold, base"), ("gold.sft", "Gold, SFT"), ("gold.rl", "Gold, RL"))
    tiles = [
        Tile(
            label, f"{value:.3f}", _mean_span(summary, name) or "mean gold score, held-out prompts"
        )
        for name, label in names
        if (value := _figure(summary, name)) is not None
    ]
    if rate is not None:
        tiles.append(Tile("RL beats SFT", f"{rate:.0%}", _span(low, high) or "of held-out prompts"))
    accuracy, ceiling = (_figure(summary, f"reward_model.{k}") for k in ("accuracy", "ceiling"))
    if accuracy is not None:
        note = (
            f"best possible with these labels: {ceiling:.1%}" if ceiling is not None else "of pairs"
        )
        tiles.append(Tile("Reward model", f"{accuracy:.1%}", note))
    for name, label, unit, note in (
        ("kl", "KL", " nats", "RL from its start, per answer"),
        ("seconds", "Time", " s", "whole pipeline, wall clock"),
        ("peak_rss_mb", "Memory", " MB", "peak, resident"),
    ):
        if (value := _figure(summary, name)) is not None:
            tiles.append(Tile(label, number(value) + unit, note))
    return Section("", "", verdicts, tiles)


def _real(
    summary: Mapping[str, Any], sound: Sequence[dict[str, Any]], flawed: Sequence[dict[str, Any]]
) -> Section:
    """Proxy and gold of the sound and the flawed run on one scale."""
    changes = {
        (run, name): _change(rows, name)
        for run, rows in (("sound", sound), ("flaw", flawed))
        for name in ("reward/mean", "reward/gold")
    }
    verdicts: list[Verdict] = []
    proxy, gold = (_tail(*changes["sound", n]) for n in ("reward/mean", "reward/gold"))
    if proxy is not None and gold is not None:
        noise = _noise(changes["sound", "reward/gold"][1])
        real = proxy > 0 and gold > noise
        verdicts.append(
            Verdict(
                "The sound run's reward is real" if real else "The sound run's reward needs a look",
                f"Over the run the proxy (the reward model's score) changed by {proxy:+.2f} and gold "
                f"by {gold:+.2f}: "
                + (
                    "they rose together."
                    if real
                    else f"gold did not rise by more than its noise ({noise:.2f})."
                ),
                "good" if real else "bad",
            )
        )
    proxy, gold = (_figure(summary, f"flaw.{k}") for k in ("proxy_gain", "gold_gain"))
    proxy = _tail(*changes["flaw", "reward/mean"]) if proxy is None else proxy
    gold = _tail(*changes["flaw", "reward/gold"]) if gold is None else gold
    if proxy is not None and gold is not None:
        hacked = proxy > 0 and gold <= 0
        verdicts.append(
            Verdict(
                "The flawed run shows what a hacked reward looks like"
                if hacked
                else "The flawed run was not hacked outright",
                f"With a fault planted in the reward, the proxy changed by {proxy:+.2f} and gold by {gold:+.2f}"
                + (": the number being trained on rose while the answers did not get better." if hacked
                   else ": gold did not fall, so here the fault did not defeat the reward."),
                "bad" if hacked else "fair",
            )
        )  # fmt: skip
    golds = [v for (_, n), (_, ys) in changes.items() if n == "reward/gold" for v in ys]
    widest = max((abs(v) for v in golds), default=0.0)
    charts: list[Chart | None] = []
    across = bounds([*golds, widest, 0.0], zero=True)
    for run, title, see in (
        ("sound", "Sound reward", "The two lines should climb together."),
        ("flaw", "Flawed reward", "A gap that opens between the lines is the hack: reward paid for nothing."),
    ):  # fmt: skip
        x, y = changes[run, "reward/mean"]
        reach = max((abs(v) for v in y), default=0.0)
        # The proxy has a unit of its own: it is shrunk to the reach of gold, never stretched.
        factor = widest / reach if 0 < widest < reach else 1.0
        extra = f" Proxy divided by {1 / factor:.1f} to share the axis." if factor < 1 else ""
        lines = [
            Line("Proxy, what is trained on", x, [v * factor for v in y], 1),
            Line("Gold, what is wanted", *changes[run, "reward/gold"], 0),
        ]
        unit = "Change since the start (gold points)"
        charts.append(line_chart(title, lines, STEP, unit, see + extra, across))
    lead = (
        "Training only ever sees the proxy. The gold score is held back to check it, so a reward "
        "that pays for nothing shows as a gap. Both charts have the same gold axis."
    )
    return Section("Is the reward real?", lead, verdicts, charts=[c for c in charts if c])


def _change(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """A metric's change since its start, the mean of its first twentieth."""
    x, y = series(rows, name)
    values = [v for v in y if v is not None]
    head = values[: max(1, len(values) // 20)]
    start = sum(head) / len(head) if head else 0.0
    return x, [v - start for v in values]


def _tail(_: Sequence[float], values: Sequence[float]) -> float | None:
    """Mean of the last tenth."""
    tail = values[-max(1, len(values) // 10) :]
    return sum(tail) / len(tail) if len(values) >= 2 else None


def _noise(values: Sequence[float]) -> float:
    """Two standard errors of a tail's mean, from the steps' own jitter about their neighbours."""
    gaps = [b - a for a, b in itertools.pairwise(values)]
    if not gaps:
        return 0.0
    one = (sum(g * g for g in gaps) / len(gaps) / 2) ** 0.5
    return 2 * one * (2 / max(1, len(values) // 10)) ** 0.5


def _gold_parts(summary: Mapping[str, Any]) -> Section:
    names = (("base", "Base", 5), ("sft", "SFT", 2), ("rl", "RL", 0), ("flaw", "Flawed RL", 1))
    groups = {
        part: bars
        for part in PARTS
        if (
            bars := [
                Bar(label, value, colour=colour)
                for key, label, colour in names
                if (value := _figure(summary, f"gold.parts.{key}.{part}")) is not None
            ]
        )
    }
    totals = [
        Bar(label, value, colour=colour)
        for key, label, colour in names
        if (value := _figure(summary, f"gold.{key}")) is not None
    ]
    charts = [
        bar_chart("Gold score", totals, "Mean gold score", "RL should stand above SFT, and a flawed reward below it."),
        grouped_bars(
            "Gold by part", groups, "Mean score of the part",
            "Shows what a gain was paid with: no part should fall while the others rise.",
        ),
    ]  # fmt: skip
    head = ("Measure", "SFT", "RL", "Flawed RL")
    rows: list[tuple[str, ...]] = []
    for name, label in (
        ("distinct_2", "Distinct word pairs (share, diversity)"),
        ("length", "Answer length (tokens)"),
    ):
        values = [_figure(summary, f"{name}.{k}") for k in ("sft", "rl", "flaw")]
        if any(v is not None for v in values):
            rows.append((label, *("–" if v is None else number(v) for v in values)))
    lead = "Gold is computed from the truth behind each prompt, on prompts no stage trained on."
    tables = [Table(head, rows)] if rows else []
    return Section("What got better", lead, charts=[c for c in charts if c], tables=tables)


def _reward_model(folder: Path, summary: Mapping[str, Any]) -> Section:
    file = folder / "reward" / "calibration.json"
    held: dict[str, Any] = {}
    if file.exists():
        try:
            held = json.loads(file.read_bytes())
        except ValueError as error:
            raise DataError(f"{file}: not JSON ({error}); remove it and run again") from error
    accuracy, ceiling, error = (
        value if (value := _figure(held, k)) is not None else _figure(summary, f"reward_model.{k}")
        for k in ("accuracy", "ceiling", "ece")
    )
    verdicts: list[Verdict] = []
    bars: list[Bar] = []
    if accuracy is not None:
        bars.append(Bar("Reward model", accuracy, colour=0))
        text = f"It picks the preferred answer in {accuracy:.1%} of held-out pairs"
        tone = "good" if accuracy > 0.6 else "bad"
        if ceiling is not None:
            bars.append(Bar("Ceiling", ceiling, colour=5))
            text += f"; the labels are noisy, so nothing can exceed {ceiling:.1%}"
            tone = "good" if accuracy - 0.5 > 0.8 * (ceiling - 0.5) else "fair"
        if error is not None:
            text += f". Its stated confidence is off by {error:.1%} on average"
        verdicts.append(Verdict("How good is the reward model?", text + ".", tone))
    see = "Dots on the dashed diagonal mean that its confidence can be trusted; larger dots hold more pairs."
    charts = [
        bar_chart(
            "Accuracy", bars, "Share of held-out pairs right",
            "The nearer to the ceiling the better; the dashed line is guessing.", 0.5,
        ),
        calibration_chart("Calibration", held.get("bins", []), see),
    ]  # fmt: skip
    return Section("The reward model", "", verdicts, charts=[c for c in charts if c])


def _stages(folder: Path) -> Section:
    charts: list[Chart] = []
    for stage, label in (("sft", "SFT"), ("reward", "Reward model")):
        rows = read_metrics(folder / stage)
        for name, unit, see in (
            ("loss", "Loss (nats)", "Should fall and level off."),
            (
                "eval/nll",
                "Held-out loss (nats a token)",
                "A rise while the training loss falls is overfitting.",
            ),
            ("accuracy", "Share of pairs right", "Should climb and level off."),
            (
                "eval/loss",
                "Held-out loss (nats)",
                "A rise while the training loss falls is overfitting.",
            ),
            ("eval/accuracy", "Held-out share right", "What counts: pairs it was not trained on."),
        ):
            chart = line_chart(
                f"{label}: {name}", [Line(label, *series(rows, name))], STEP, unit, see
            )
            charts += [chart] if chart else []
    return Section("The stages before", "Supervised tuning and the reward model.", charts=charts)


def _side_by_side(folder: Path, count: int = 3) -> Section:
    file = folder / "compare" / "comparison.parquet"
    if not file.exists():
        return Section("")
    try:
        rows = pq.read_table(file).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a readable table ({error}); remove it") from error

    def gain(row: dict[str, Any]) -> float:
        return float(row.get("gold_rl") or 0) - float(row.get("gold_sft") or 0)

    rows.sort(key=gain, reverse=True)
    names = (("sft", "SFT"), ("rl", "RL"), ("flaw", "Flawed RL"), ("base", "Base"))
    picks = [
        Pick(
            _clip(row.get("prompt")),
            [
                Answer(label, _clip(row[key]), _score(row.get(f"gold_{key}"), "gold"))
                for key, label in names
                if row.get(key) is not None
            ],
            f"{why}: gold changed by {gain(row):+.2f} from SFT to RL"
            + (f" · {row['kind']}" if row.get("kind") else ""),
        )
        for why, row in _choose(rows, count)
    ]
    lead = "RL beside SFT on held-out prompts, chosen by gold: its best gains, its worst losses, and a random draw."
    return Section("Answers side by side", lead, picks=picks)
