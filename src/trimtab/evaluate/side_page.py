"""The side by side page: what changed, read in two minutes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.report.charts import Bar, bar_chart, grouped_bars, number
from trimtab.report.sections import Answer, Pick, Section, Table, Tile, Verdict, render
from trimtab.runs import write_atomic

LONGEST = 1500
STYLES = (
    ("words", "Words an answer", False),
    ("distinct_2", "Distinct word pairs (diversity)", False),
    ("copied", "Copied from the prompt", True),
    ("flattery", "Flatter the user", True),
    ("refusal", "Refuse", True),
    ("same_opening", "Begin with the same three words", True),
)


def _span(at: Mapping[str, float]) -> str:
    return f"{at['mean']:.0%} [{at['low']:.0%}, {at['high']:.0%}]"


def _verdict(figures: Mapping[str, Any]) -> Verdict:
    """Of the last model before those that only differ in decoding."""
    names = [n for n in figures if not n.startswith("T=")]
    base, last = names[0], names[-1]
    mine, theirs = figures[last], figures[base]
    raw, even = mine["win_rate"], mine["win_rate_length_controlled"]
    if raw["low"] > 0.5 and even["low"] > 0.5:
        head, tone = f"{last} is better than {base}", "good"
    elif raw["high"] < 0.5:
        head, tone = f"{last} is worse than {base}", "bad"
    elif raw["low"] > 0.5:
        head, tone = f"{last} wins over {base}, but not at equal length", "fair"
    else:
        head, tone = f"{last} cannot be told from {base}", "fair"
    text = f"It wins {_span(raw)} of {mine['compared']} prompts, at equal length {_span(even)}. "
    changes: list[str] = []
    for key, label, share in STYLES:
        a, b = theirs["style"][key], mine["style"][key]
        if share and abs(b - a) >= 0.1:
            changes.append(f"{label.lower()}: {a:.0%} to {b:.0%}")
        elif not share and a > 0 and abs(b / a - 1) >= 0.2:
            changes.append(f"{label.lower()}: {number(a)} to {number(b)}")
    text += f"What changed in style: {'; '.join(changes)}." if changes else "Style hardly changed."
    return Verdict(head, text, tone)


def write_page(
    out: Path, figures: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], first: str
) -> Path:
    """Write ``side.html``."""
    names = list(figures)
    base = names[0]
    tiles = [
        Tile(name, f"{mine[first]['mean']:.3f}", f"mean {first}")
        for name, mine in figures.items()
        if first in mine
    ]
    wins = {
        name: [
            Bar("raw", figures[name]["win_rate"]["mean"], colour=0),
            Bar("at equal length", figures[name]["win_rate_length_controlled"]["mean"], colour=2),
        ]
        for name in names[1:]
    }
    charts = [
        grouped_bars(
            f"Win rate against {base}", wins, "Share of prompts won (ties half)",
            "Above one half is better than the start; where the second bar is lower, length did it.",
        ),
        bar_chart(
            "Answer length", [Bar(n, figures[n]["style"]["words"], colour=5) for n in names],
            "Words an answer", "A climb that nobody asked for is the commonest way to please.",
        ),
        bar_chart(
            "Diversity", [Bar(n, figures[n]["style"]["distinct_2"], colour=3) for n in names],
            "Distinct word pairs (share)", "A fall means that the answers grow alike.",
        ),
        bar_chart(
            "Flattery",
            [
                Bar(n, f["flattery"], f["flattery_low"], f["flattery_high"], 1)
                for n in names
                if (f := figures[n]["style"])
            ],
            "Share of answers that flatter", "A rise means that agreeing is paid for.",
        ),
    ]  # fmt: skip
    table = Table(
        ("", *names),
        [
            *(
                (
                    label,
                    *(
                        f"{figures[n]['style'][key]:.0%}"
                        if share
                        else number(figures[n]["style"][key])
                        for n in names
                    ),
                )
                for key, label, share in STYLES
            ),
            ("Cut at the limit", *(f"{figures[n]['truncated']:.0%}" for n in names)),
            ("Win rate", *(_span(figures[n]["win_rate"]) for n in names)),
            (
                "Win rate at equal length",
                *(_span(figures[n]["win_rate_length_controlled"]) for n in names),
            ),
        ],
    )
    most = max(len(figures[n]["openings"]) for n in names)
    starts = Table(
        names,
        [
            [
                f"{o[i][0]} ({o[i][1]:.0%})" if i < len(o := figures[n]["openings"]) else ""
                for n in names
            ]
            for i in range(most)
        ],
    )
    page = out / "side.html"
    html = render(
        [
            Section("", "", [_verdict(figures)], tiles),
            Section("What changed", "", charts=[c for c in charts if c], tables=[table]),
            Section("How answers begin", "The commonest first words.", tables=[starts]),
            Section(
                "Answers", "The largest losses, the largest gains, and others by chance.",
                picks=_picks(rows, names, first),
            ),
        ],
        "Side by side",
        f"{len(rows)} held-out prompts, wins by {first}",
    )  # fmt: skip
    write_atomic(page, html.encode())
    return page


def _picks(rows: Sequence[Mapping[str, Any]], names: Sequence[str], first: str) -> list[Pick]:
    last = [n for n in names if not n.startswith("T=")][-1]

    def score(row: Mapping[str, Any], name: str) -> float | None:
        return json.loads(row[f"scores {name}"]).get(first)

    def gain(row: Mapping[str, Any]) -> float:
        a, b = score(row, names[0]), score(row, last)
        return 0.0 if a is None or b is None else b - a

    ranked = sorted(rows, key=gain)
    chosen = ranked if len(ranked) <= 8 else [*ranked[:3], *ranked[-3:], *ranked[4:-4:max(1, len(ranked) // 2)][:2]]  # fmt: skip
    picks: list[Pick] = []
    for row in chosen:
        shown = [
            Answer(n, row[n][:LONGEST], "" if (s := score(row, n)) is None else f"{first} {s:.2f}")
            for n in names
        ]
        picks.append(Pick(row["prompt"][:LONGEST], shown, f"{first} changed by {gain(row):+.2f}"))
    return picks
