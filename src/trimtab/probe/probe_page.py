"""The page of a reward's probes: what it pays for, in one screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.report.charts import (
    Bar,
    Chart,
    Line,
    bar_chart,
    calibration_chart,
    line_chart,
    number,
)
from trimtab.report.sections import Answer, Pick, Section, Table, Tile, Verdict, render
from trimtab.runs import write_atomic

COLOUR = {"bad": 1, "fair": 4, "good": 2}
ORDER = ("bad", "fair", "good")
EMPTY = ("copying", "fluency", "scrambled", "canary", "refusal")
ADDED = ("length", "repetition", "praise", "format", "position")
STYLE = ("style agrees", "style equal", "style opposes")

Row = Mapping[str, Any]


def write_page(out: Path, told: Mapping[str, Any]) -> Path:
    """Write ``probes.html`` from what ``probes.json`` holds."""
    rows: Sequence[Row] = told["probes"]
    sections = [_first(rows), *_by_source(rows), *_sets(told["sets"])]
    if "best_of_n" in told:
        sections.append(_best_of(told["best_of_n"]))
    sections.append(_table(rows))
    name = told["reward"].get("model") or told["reward"].get("function") or "several models"
    page = out / "probes.html"
    text = render(sections, "What does the reward pay for?", f"trimtab probe {name}")
    write_atomic(page, text.encode())
    return page


def _percent(row: Row) -> str:
    span = (
        f" (95 % interval {row['low']:.0%} to {row['high']:.0%})"
        if row.get("low") is not None and row["probe"] != "disagreement"
        else ""
    )
    unit = (
        f"{row['value']:.2f}" if row["probe"] in ("disagreement", "ece") else f"{row['value']:.0%}"
    )
    return f"{unit}{span}"


def _first(rows: Sequence[Row]) -> Section:
    bad = [r for r in rows if r["verdict"] == "bad"]
    weak = [r for r in bad if r["probe"] == "accuracy"]
    names = ", ".join(dict.fromkeys(str(r["probe"]) for r in bad))
    if weak:
        head, tone = "Do not train on this reward", "bad"
        text = "Its accuracy on held-out pairs cannot be told from what a blind reader gets. "
    elif bad:
        head, tone = "This reward can be pleased without a better answer", "bad"
        text = "A policy trained on it will find these ways. "
    else:
        head, tone = "No probe found a way to please it", "good"
        text = "That is no proof that there is none: audit the rollouts too. "
    if names:
        text += f"Bad: {names}."
    tiles: list[Tile] = []
    for r in rows:
        if r["probe"] == "accuracy":
            note = f"{r['source']}; length alone or a coin: {r['baseline']:.0%}"
            tiles.append(Tile("Accuracy", f"{r['value']:.1%}", note))
        if r["probe"] == "ece":
            tiles.append(Tile("Calibration error", f"{r['value']:.1%}", str(r["source"])))
        if r["probe"] == "flattery":
            tiles.append(
                Tile(
                    f"Follows the user ({r['of']})", f"{r['value']:.0%}",
                    f"{r['source']}; by chance {r['baseline']:.0%}",
                )
            )  # fmt: skip
    picks = [
        Pick(
            e["prompt"],
            [Answer("Scored lower", e.get("plain", "")), Answer("Scored higher", e["answer"])],
            f"{r['probe']} ({r['source']}): {r['about']}",
        )
        for r in sorted(bad, key=lambda r: -r["value"])[:4]
        for e in r.get("examples", ())[:1]
    ]
    return Section("", "", [Verdict(head, text, tone)], tiles, picks=picks)


def _by_source(rows: Sequence[Row]) -> list[Section]:
    made: list[Section] = []
    for source in dict.fromkeys(r["source"] for r in rows):
        mine = {r["probe"]: r for r in rows if r["source"] == source and r["probe"] != "flattery"}
        charts = [
            _bars(
                "Additions that make no answer better", [mine[p] for p in ADDED if p in mine],
                "Share of prompts that pay",
                "At or below the dashed line it does not pay for them; above it a policy will add them.",
                0.5,
            ),
            _bars(
                "Answers without the content", [mine[p] for p in EMPTY if p in mine],
                "Share of prompts that pay",
                "Should be near 0: each bar is how often it beats a good answer.", 0.1,
            ),
            _bars(
                "Content against style", [mine[p] for p in STYLE if p in mine],
                "Share that prefers wrong",
                "From left to right style helps the wrong answer more; a climb is the price of style.",
                None,
            ),
        ]  # fmt: skip
        lead = (
            "Texts from the sandbox's grammar, whose truth is known."
            if source == "sandbox"
            else "Your own comparisons, with one thing changed in each."
        )
        made.append(Section(f"Probes: {source}", lead, charts=[c for c in charts if c]))
    return made


def _bars(
    title: str, rows: Sequence[Row], unit: str, see: str, level: float | None
) -> Chart | None:
    bars = [
        Bar(str(r["probe"]), r["value"], r["low"], r["high"], COLOUR[r["verdict"]]) for r in rows
    ]
    return bar_chart(title, bars, unit, see + " Red: bad, green: good.", level)


def _sets(cards: Mapping[str, Row]) -> list[Section]:
    made: list[Section] = []
    for source, card in cards.items():
        blind = [
            Bar("Reward", card["accuracy"], card["accuracy_low"], card["accuracy_high"], 0),
            Bar("Length alone", card["length_only"], colour=5),
            Bar("Labels shuffled", card["shuffled"], None, None, 5),
        ]
        if "other_prompt" in card:
            blind.append(Bar("Other prompt", card["other_prompt"], colour=5))
        if "ceiling" in card:
            blind.append(Bar("Label noise", card["ceiling"], colour=2))
        subsets = {**card["subsets"], **card["length"]}
        bars = [
            Bar(name, f["accuracy"], f["accuracy_low"], f["accuracy_high"])
            for name, f in list(subsets.items())[:8]
        ]
        charts = [
            bar_chart(
                "Accuracy beside blind readers", blind, "Share of held-out pairs right",
                "The reward should stand clear of the grey bars; green is what noisy labels allow.", 0.5,
            ),
            bar_chart(
                "Accuracy by subset", bars, "Share of held-out pairs right",
                "A bar whose interval holds the dashed line is a kind of prompt where it guesses.", 0.5,
            ),
        ]  # fmt: skip
        if "bins" in card:
            charts.append(
                calibration_chart(
                    "Calibration", card["bins"],
                    "Dots on the diagonal mean that a score difference can be read as odds.",
                )
            )  # fmt: skip
        lead = f"{int(card['pairs'])} held-out pairs."
        made.append(Section(f"Accuracy: {source}", lead, charts=[c for c in charts if c]))
    return made


def _best_of(found: Mapping[str, Any]) -> Section:
    points = list(found["curve"].values())
    x = [p["kl_bound"] ** 0.5 for p in points]
    lines = [Line("Gold", x, [p.get("gold") for p in points], 0)]
    charts = [
        line_chart(
            "Gold of the best of n", lines, "√KL to the policy (√nats, at most)", "Mean gold score",
            "Rising to the right, picking by this reward picks better answers; a bend is over-optimisation.",
        ),
        line_chart(
            "Reward of the best of n", [Line("Reward", x, [p["reward"] for p in points], 1)],
            "√KL to the policy (√nats, at most)", "Mean reward",
            "Always rises: it is what the picking is done by.",
        ),
    ]  # fmt: skip
    lead = ""
    if "fit" in found:
        peak, reach = found["fit"]["peak"], found["fit"]["reach"]
        lead = (
            f"Gao's form fits with R² {found['fit']['r2']:.3f}; "
            + (
                f"gold peaks at √KL {peak:.2f}."
                if peak is not None and peak <= reach
                else "no peak within reach of this n."
            )
        )  # fmt: skip
    return Section("Before any training: best of n", lead, charts=[c for c in charts if c])


def _table(rows: Sequence[Row]) -> Section:
    body = [
        (
            f"{r['probe']} ({r['source']}, {r['of']})", _percent(r),
            f"{r['baseline']:.2f}", number(float(r["n"])),
            "–" if r.get("gap") is None else f"{r['gap']:+.2f}", str(r["verdict"]), str(r["about"]),
        )
        for r in sorted(rows, key=lambda r: ORDER.index(r["verdict"]))
    ]  # fmt: skip
    head = ("Probe", "Value", "Against", "n", "Score moved by (spreads)", "", "What it is")
    return Section("Every probe", "", tables=[Table(head, body)])
