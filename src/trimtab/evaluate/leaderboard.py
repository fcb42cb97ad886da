"""``trimtab evaluate``: a leaderboard of models by the verdicts of people, judges or gold."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from trimtab.config import Config
from trimtab.errors import ConfigError, DataError
from trimtab.evaluate.agreement_result import Rating
from trimtab.evaluate.instruction_difficulty import read_difficulty
from trimtab.evaluate.standing import Board, Standing, standings
from trimtab.evaluate.table_text import as_text, plain, span
from trimtab.exchange import convert
from trimtab.feedback.votes import votes
from trimtab.report.charts import Bar, bar_chart
from trimtab.report.sections import Section, Table, render
from trimtab.runs import to_json, write_atomic
from trimtab.stats.ranking import connected

log = logging.getLogger(__name__)


class EvaluateConfig(Config):
    """Configuration of ``trimtab evaluate FILES``."""

    files: tuple[str, ...] = Field(min_length=1)
    """Items and judgements, or any format that ``trimtab exchange`` reads (AlpacaEval
    annotations)."""
    baseline: str | None = None
    """The model that the others are compared with; by default the one in most comparisons."""
    who: Literal["human", "simulated", "ai", "gold"] | None = None
    """Only verdicts of these; by default of all but gold, or of gold if there are no others."""
    annotators: tuple[str, ...] = ()
    """Only verdicts of these annotators."""
    difficulty: str | None = None
    """AlpacaEval's instruction_difficulty.csv or df_gamed.csv, for length-controlled win rates as on
    the leaderboard of AlpacaEval 2. Without it, difficulty is estimated from ``files``."""
    dimension: str | None = None
    """Verdicts on one rubric."""
    soft: bool = True
    """Use a judge's probability, where it has one, as its verdict (weighted win rate)."""
    output_files: ClassVar[frozenset[str]] = frozenset({"html", "json_"})

    html: str | None = None
    """Write a page here."""
    json_: str | None = Field(default=None, alias="json")
    """Write every figure here."""
    draws: int = Field(default=1000, ge=100)
    """Bootstrap samples of prompts."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """Every figure of ``trimtab evaluate``, as its JSON has them."""

    baseline: str
    annotators: list[str]
    verdicts: int
    prompts: int
    connected: bool
    """Whether the wins connect all models, so that finite strengths fit without added wins."""
    against_baseline: dict[str, Standing]
    elo: dict[str, Rating]
    """The strongest model first."""


def measure(config: EvaluateConfig) -> Leaderboard:
    """Read the labels and rank the models.

    Raises:
        ConfigError: the baseline is none of the models.
        DataError: no verdict between two named models is left.
    """
    published = read_difficulty(config.difficulty) if config.difficulty else None
    records = convert.read(config.files)
    current = records.current()
    chosen = [
        j
        for j in current
        if (config.who is None or j.who == config.who)
        and (not config.annotators or j.annotator in config.annotators)
    ]
    if config.who is None and not config.annotators:
        chosen = [j for j in chosen if j.who != "gold"] or chosen
    board = Board(records, votes(chosen, config.dimension), soft=config.soft)
    if not board.win:
        present = ", ".join(sorted({f"{j.annotator} ({j.who})" for j in current})[:8])
        raise DataError(
            f"{', '.join(config.files)}: no verdict between two named models; items need 'models', "
            f"and who and annotators must select some of: {present or 'no annotator'}"
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
    return Leaderboard(
        baseline=baseline,
        annotators=sorted({j.annotator for j in chosen}),
        verdicts=board.verdicts,
        prompts=len({k[0] for k in board.win}),
        connected=connected(total),
        against_baseline=standings(board, baseline, config.draws, config.seed, published),
        elo=dict(sorted(ratings.items(), key=lambda r: -r[1].elo)),
    )


def as_table(board: Leaderboard) -> Table:
    """The leaderboard as text, the strongest model first."""
    rows: list[tuple[str, ...]] = []
    for name, rating in board.elo.items():
        standing = board.against_baseline.get(name)
        points = f"{rating.elo:.0f} [{rating.low:.0f}, {rating.high:.0f}]"
        if name == board.baseline:
            rows.append((name, "baseline", "", "", "", f"{rating.elo:.0f}"))
        elif standing is None:
            rows.append((name, "", "", "", "", points))
        else:
            rows.append(
                (
                    name,
                    span(standing.win_rate, percent=True),
                    span(standing.length_controlled, percent=True),
                    f"{standing.wins}, {standing.ties}, {standing.losses}",
                    f"{standing.longer:+.1f}",
                    points,
                )
            )
    return Table(("Model", "Win rate", "LC win rate", "Won, tied, lost", "Characters", "Elo"), rows)


def page(board: Leaderboard) -> str:
    """The leaderboard as a page."""
    rates = {name: (s.win_rate, s.length_controlled) for name, s in board.against_baseline.items()}
    raw = [Bar(name, r.value, r.low, r.high, 0) for name, (r, _) in rates.items()]
    controlled = [Bar(name, r.value, r.low, r.high, 1) for name, (_, r) in rates.items()]
    charts = [
        bar_chart(
            f"Win rate against {board.baseline}",
            raw,
            "Share of prompts won",
            "The dashed line is a half: as good as the baseline.",
            0.5,
        ),
        bar_chart(
            "Win rate at equal length",
            controlled,
            "Share of prompts won",
            "A bar that falls to the line means that the model won by length.",
            0.5,
        ),
    ]
    lead = (
        f"{board.verdicts} verdicts on {board.prompts} prompts by {', '.join(board.annotators)}. A tie "
        "is half a win; intervals are 95 %, over prompts. LC is length-controlled: as if completions "
        "were equally long. Characters are the mean difference."
    )
    section = Section("Leaderboard", lead, charts=charts, tables=[as_table(board)])
    return render([section], "Models compared", footer="docs/agreement.md explains each figure.")


def main(config: EvaluateConfig) -> Leaderboard:
    """Log the leaderboard; write the page and the JSON if asked."""
    board = measure(config)
    log.info(as_text(as_table(board)))
    log.info(
        f"{board.verdicts} verdicts on {board.prompts} prompts by "
        f"{plain(', '.join(board.annotators))}; 95 % intervals over prompts"
    )
    if not board.connected:
        log.info(
            "Elo: the wins do not connect all models, so half a win each way was added between every "
            "two; read the differences with care"
        )
    if config.json_:
        write_atomic(Path(config.json_), to_json(asdict(board), indent=1).encode())
        log.info("every figure -> %s", config.json_)
    if config.html:
        write_atomic(Path(config.html), page(board).encode())
        log.info("page -> %s", config.html)
    return board
