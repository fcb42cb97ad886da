"""``trimtab evaluate``: how models stand by the verdicts of people, judges or gold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from trimtab.config import Config
from trimtab.errors import ConfigError, DataError
from trimtab.evaluate.agreement_findings import span
from trimtab.evaluate.agreement_page import plain
from trimtab.evaluate.standing import Board, table
from trimtab.exchange import convert
from trimtab.feedback.votes import votes
from trimtab.report.charts import Bar, bar_chart
from trimtab.report.sections import Section, Table, render
from trimtab.runs import write_atomic
from trimtab.runs.console import console
from trimtab.stats.ranking import connected


class EvaluateConfig(Config):
    """Configuration of ``trimtab evaluate FILES``."""

    files: tuple[str, ...] = Field(min_length=1)
    """Items and judgements, or any format that ``trimtab exchange`` reads (AlpacaEval
    annotations)."""
    baseline: str | None = None
    """The model the others are held against; by default the one in most comparisons."""
    who: Literal["human", "simulated", "ai", "gold"] | None = None
    """Verdicts of these alone; by default of all but gold, or of gold if there are no others."""
    annotators: tuple[str, ...] = ()
    """Verdicts of these alone."""
    dimension: str | None = None
    """Verdicts on one rubric."""
    soft: bool = True
    """Use a judge's probability, where it gives one, as its verdict (weighted win rate)."""
    html: str | None = None
    """Write a page here."""
    json_: str | None = Field(default=None, alias="json")
    """Write every figure here."""
    draws: int = Field(default=1000, ge=100)
    """Bootstrap samples of prompts."""
    seed: int = 0


def measure(config: EvaluateConfig) -> dict[str, Any]:
    """The figures, as they stand in the JSON.

    Raises:
        DataError: no verdict between two named models is left.
    """
    records = convert.read(config.files)
    standing = records.current()
    chosen = [
        j for j in standing
        if (config.who is None or j.who == config.who)
        and (not config.annotators or j.annotator in config.annotators)
    ]  # fmt: skip
    if config.who is None and not config.annotators:
        chosen = [j for j in chosen if j.who != "gold"] or chosen
    board = Board(records, votes(chosen, config.dimension), soft=config.soft)
    if not board.win:
        seen = ", ".join(sorted({f"{j.annotator} ({j.who})" for j in standing})[:8])
        raise DataError(
            f"{', '.join(config.files)}: no verdict between two named models; items need 'models', "
            f"and of the annotators there ({seen or 'none'}) some must be among those asked for"
        )
    games = {name: 0 for name in board.names}
    for _, i, j in board.win:
        games[board.names[i]] += 1
        games[board.names[j]] += 1
    baseline = config.baseline or max(games, key=lambda m: games[m])
    if baseline not in games:
        raise ConfigError(f"baseline: {baseline!r} is none of the models: {', '.join(games)}")
    ratings = board.ratings(config.draws, config.seed, baseline)
    _, total = board.wins()
    return {
        "baseline": baseline,
        "annotators": sorted({j.annotator for j in chosen}),
        "verdicts": board.verdicts,
        "prompts": len({k[0] for k in board.win}),
        "connected": connected(total),
        "against_baseline": table(board, baseline, config.draws, config.seed),
        "elo": dict(sorted(ratings.items(), key=lambda r: -r[1]["elo"])),
    }


HEAD = ("Model", "Win rate", "LC win rate", "Won, tied, lost", "Words", "Elo")


def rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """The leaderboard as text, the strongest first."""
    out: list[tuple[str, ...]] = []
    for name, rating in found["elo"].items():
        mine = found["against_baseline"].get(name)
        points = f"{rating['elo']:.0f} [{rating['low']:.0f}, {rating['high']:.0f}]"
        if name == found["baseline"]:
            out.append((name, "baseline", "", "", "", f"{rating['elo']:.0f}"))
        elif mine is None:
            out.append((name, "", "", "", "", points))
        else:
            record = f"{mine['wins']}, {mine['ties']}, {mine['losses']}"
            out.append((name, span(mine["win_rate"], percent=True), span(mine["length_controlled"], percent=True),
                        record, f"{mine['longer']:+.1f}", points))  # fmt: skip
    return out


def page(found: dict[str, Any]) -> str:
    """The same as a page."""
    bars = {
        key: [
            Bar(m, v[key]["value"], v[key]["low"], v[key]["high"], colour)
            for m, v in found["against_baseline"].items()
        ]
        for colour, key in enumerate(("win_rate", "length_controlled"))
    }
    charts = [
        bar_chart(f"Win rate against {found['baseline']}", bars["win_rate"], "Share of prompts won",
                  "The dashed line is a half: as good as the baseline.", 0.5),
        bar_chart("The same, were answers equally long", bars["length_controlled"],
                  "Share of prompts won", "Where this falls to the line, length was what won.", 0.5),
    ]  # fmt: skip
    lead = (
        f"{found['verdicts']} verdicts on {found['prompts']} prompts by "
        f"{', '.join(found['annotators'])}. A tie is half a win; intervals are 95 %, by prompt. LC is "
        "length-controlled: as if answers were equally long. Words are the mean difference."
    )
    sections = [
        Section("Leaderboard", lead, charts=[c for c in charts if c],
                tables=[Table(HEAD, rows(found))]),
    ]  # fmt: skip
    return render(
        sections, "Models compared", footer="docs/agreement.md says how each figure is made."
    )


def main(config: EvaluateConfig) -> dict[str, Any]:
    """Print the leaderboard; write page and JSON where asked."""
    from rich.table import Table as Shown

    found = measure(config)
    shown = Shown(box=None, pad_edge=False, header_style="bold")
    for name in HEAD:
        shown.add_column(name, overflow="fold")
    for row in rows(found):
        shown.add_row(*map(plain, row))
    console.print(shown)
    console.print(
        f"{found['verdicts']} verdicts on {found['prompts']} prompts by "
        f"{plain(', '.join(found['annotators']))}; 95 % intervals, by prompt"
    )
    if not found["connected"]:
        console.print(
            "Elo: some models were never beaten, or never won, through any others; half a win each "
            "way was added between any two"
        )
    if config.json_:
        write_atomic(Path(config.json_), json.dumps(found, indent=1, ensure_ascii=False).encode())
        console.print(f"every figure -> {config.json_}")
    if config.html:
        write_atomic(Path(config.html), page(found).encode())
        console.print(f"page -> {config.html}")
    return found
