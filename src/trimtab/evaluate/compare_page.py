"""The page of ``trimtab compare``: win rates, style, and completions side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trimtab.report.charts import Bar, Chart, bar_chart, grouped_bars, number
from trimtab.report.sections import Answer, Pick, Section, Table, Tile, Verdict, render
from trimtab.stats.uncertainty import Estimate

if TYPE_CHECKING:
    from trimtab.evaluate.model_result import ModelResult

MAX_TEXT = 1500
"""Characters of a prompt or completion that are shown."""
STYLES = (
    ("words", "Words per completion", False),
    ("distinct_2", "Distinct word pairs (diversity)", False),
    ("copied", "Copied from the prompt", True),
    ("flattery", "Flatter the user", True),
    ("refusal", "Refuse", True),
    ("same_opening", "Begin with the same three words", True),
)
"""Key, label, and whether it is a share, of the style figures."""
STYLE_CHARTS = (
    ("words", "Completion length", "Words per completion", "Rewards often favour length.", 5),
    ("distinct_2", "Diversity", "Distinct word pairs (share)", "Lower: more alike.", 3),
    (
        "flattery",
        "Flattery",
        "Share of completions that flatter",
        "Higher: the reward pays for it.",
        1,
    ),
)
"""Key, title, unit, explanation and colour."""


def _percent(rate: Estimate) -> str:
    return f"{rate.value:.0%} [{rate.low:.0%}, {rate.high:.0%}]"


def _verdict(base: str, last: str, results: Mapping[str, ModelResult]) -> Verdict:
    result = results[last]
    raw, controlled = result.win_rate, result.win_rate_length_controlled
    if raw.low > 0.5 and controlled.low > 0.5:
        title, tone = f"{last} is better than {base}", "good"
    elif raw.high < 0.5:
        title, tone = f"{last} is worse than {base}", "bad"
    elif raw.low > 0.5:
        title, tone = f"{last} is better than {base}, but not at equal length", "fair"
    else:
        title, tone = f"No significant difference between {last} and {base}", "fair"
    changes: list[str] = []
    for key, label, share in STYLES:
        before, after = results[base].style[key], result.style[key]
        if share and abs(after - before) >= 0.1:
            changes.append(f"{label.lower()}: {before:.0%} to {after:.0%}")
        elif not share and before > 0 and abs(after / before - 1) >= 0.2:
            changes.append(f"{label.lower()}: {number(before)} to {number(after)}")
    style = f"Changes in style: {'; '.join(changes)}." if changes else "Style hardly changed."
    return Verdict(
        title,
        f"It wins {_percent(raw)} of {result.compared} comparisons, {_percent(controlled)} at equal "
        f"length. {style}",
        tone,
    )


def page(
    results: Mapping[str, ModelResult], baseline: str, rows: Sequence[Mapping[str, Any]], first: str
) -> str:
    """The page as HTML.

    Args:
        baseline: The model that the others are compared with.
        first: Name of the reward that decides wins.
    """
    names = list(results)
    trained = [n for n in names if not results[n].decoding]
    last = next((n for n in reversed(trained) if n != baseline), baseline)
    tiles = [
        Tile(name, f"{r.scores[first].value:.3f}", f"mean {first}")
        for name, r in results.items()
        if first in r.scores
    ]
    tables = [_table(results)]
    starts = [
        [f"{o[0]} ({o[1]:.0%})" for o in result.openings] + [""] * (5 - len(result.openings))
        for result in results.values()
    ]
    sections = [
        Section("", "", [_verdict(baseline, last, results)] if last != baseline else [], tiles),
        Section("What changed", "", charts=_charts(results, baseline), tables=tables),
        Section(
            "Openings",
            "The most common first words.",
            tables=[Table(names, list(zip(*starts, strict=True)))],
        ),
        Section(
            "Completions",
            "The largest losses, the largest gains, and two from the middle.",
            picks=_picks(rows, names, baseline, last, first),
        ),
    ]
    return render(sections, "Side by side", f"{len(rows)} held-out rows, wins by {first}")


def _charts(results: Mapping[str, ModelResult], baseline: str) -> list[Chart | None]:
    wins = {
        name: [
            Bar("raw", r.win_rate.value, colour=0),
            Bar("at equal length", r.win_rate_length_controlled.value, colour=2),
        ]
        for name, r in results.items()
        if name != baseline
    }
    see = "Above one half is better than the baseline; a lower second bar shows the part due to length."
    title = f"Win rate against {baseline}"
    charts = [grouped_bars(title, wins, "Share of comparisons won (ties half)", see)]
    for key, title, unit, see, colour in STYLE_CHARTS:
        bars = [
            Bar(n, r.style[key], r.style.get(f"{key}_low"), r.style.get(f"{key}_high"), colour)
            for n, r in results.items()
        ]
        charts.append(bar_chart(title, bars, unit, see))
    return charts


def _table(results: Mapping[str, ModelResult]) -> Table:
    every = list(results.values())
    rows = [
        (label, *(f"{r.style[key]:.0%}" if share else number(r.style[key]) for r in every))
        for key, label, share in STYLES
    ]
    rows += [
        ("Truncated", *(f"{r.truncated:.0%}" for r in every)),
        ("Win rate", *(_percent(r.win_rate) for r in every)),
        ("Win rate at equal length", *(_percent(r.win_rate_length_controlled) for r in every)),
        (
            "KL to the baseline (nats per completion)",
            *("" if r.kl is None else number(r.kl) for r in every),
        ),
        (
            "Fluency: NLL (nats per token)",
            *("" if r.nll is None else f"{r.nll:.2f}" for r in every),
        ),
    ]
    rows += [(f"pass@{k}", *(_percent(r.pass_at[k]) for r in every)) for k in every[0].pass_at]
    if any(any(r.failed.values()) for r in every):
        rows.append(("Failed scores", *(str(sum(r.failed.values())) for r in every)))
    return Table(("", *results), rows)


def _picks(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], base: str, last: str, first: str
) -> list[Pick]:
    def gain(row: Mapping[str, Any]) -> float:
        before, after = row.get(f"{first}_{base}"), row.get(f"{first}_{last}")
        return 0.0 if before is None or after is None else after - before

    ranked = sorted(rows, key=gain)
    if len(ranked) > 8:
        middle = ranked[4 : -4 : max(1, len(ranked) // 2)][:2]
        ranked = [*ranked[:3], *ranked[-3:], *middle]
    picks: list[Pick] = []
    for row in ranked:
        scores = {n: row.get(f"{first}_{n}") for n in names}
        completions = [
            Answer(n, row[n][:MAX_TEXT], "" if scores[n] is None else f"{first} {scores[n]:.2f}")
            for n in names
        ]
        why = f"{first} changed by {gain(row):+.2f}"
        picks.append(Pick(row["prompt"][:MAX_TEXT], completions, why))
    return picks
