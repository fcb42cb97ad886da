"""The figures of ``trimtab agreement`` as tables in the terminal and as a page."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from trimtab.evaluate.agreement_findings import BIAS_TARGETS, verdicts
from trimtab.evaluate.agreement_result import AgreementResult, AnnotatorResult
from trimtab.evaluate.table_text import as_text, plain, span
from trimtab.feedback.records import Records
from trimtab.report.charts import Bar, Chart, bar_chart, calibration_chart
from trimtab.report.sections import Answer, Pick, Section, Table, Tile, render

log = logging.getLogger(__name__)

GROUPS = {"all": "everyone", "people": "people", "judges": "judges"}
KINDS = {
    "person-person": "person and person",
    "judge-person": "judge and person",
    "judge-judge": "judge and judge",
}
MAX_BARS = 6
"""Bars per chart; the tables have every annotator."""
QUALITY_CHARTS = (
    ("accuracy", "Accuracy", "P(says the true class)", "By Dawid and Skene, from all annotators."),
    ("with_people", "With the majority of the other people", "Share of pairs", "Ties count half."),
    ("gold", "Against the gold answer", "Share of pairs", "On items with a gold answer."),
)
"""Field of ``AnnotatorResult``, title, unit and explanation."""
FOOTER = (
    "Intervals are 95 %; those of agreement, kappa and accuracy are bootstraps over items. "
    "docs/agreement.md has every formula and its source."
)


def _agreement_table(result: AgreementResult) -> Table:
    groups = {name: result.agreement[key] for key, name in GROUPS.items()}
    groups |= {f"on {name}": group for name, group in result.dimensions.items()}
    rows = [
        (
            name,
            str(group.units),
            span(group.percent, True),
            span(group.alpha),
            f"{span(group.fleiss)} ({group.fleiss.raters} labels)" if group.fleiss else "",
        )
        for name, group in groups.items()
        if group.units
    ]
    rows += [
        (f"scores, {name}", str(alpha.answers), "", span(alpha), "")
        for name, alpha in result.scores.items()
        if alpha
    ]
    return Table(("Group", "Pairs", "Same label", "Krippendorff alpha", "Fleiss kappa"), rows)


def _kappa_table(result: AgreementResult) -> Table:
    rows = [
        (KINDS.get(kind, kind), str(kappa.pairs), span(kappa))
        for kind, kappa in result.kappa.means.items()
        if kappa
    ]
    return Table(("Between", "Pairs of annotators", "Cohen kappa, mean"), rows)


def _kappa_pairs(result: AgreementResult, most: int = 15) -> Table:
    """The annotators who share the most pairs."""
    rows = [(f"{r.a} and {r.b}", str(r.units), span(r.kappa)) for r in result.kappa.pairs[:most]]
    return Table(("Annotators", "Shared pairs", "Cohen kappa"), rows)


def _without_empty(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table without its empty columns and rows; the first column holds names."""
    columns = [i for i in range(len(head)) if i == 0 or any(r[i] for r in rows)]
    return Table([head[i] for i in columns], [[r[i] for i in columns] for r in rows if any(r[1:])])


def _annotator_table(result: AgreementResult) -> Table:
    rows = [
        (
            f"{name} (judge)" if a.who == "judge" else name,
            str(a.judgements),
            f"{a.ties:.0%}" if a.ties is not None else "",
            f"{a.seconds:.0f}" if a.seconds is not None else "",
            span(a.accuracy, True),
            span(a.with_people, True),
            span(a.gold, True),
        )
        for name, a in result.annotators.items()
    ]
    head = ("Annotator", "Judged", "Ties", "Seconds", "Accuracy", "With people", "Gold")
    return _without_empty(head, rows)


def _steadiness_table(result: AgreementResult) -> Table:
    rows: list[tuple[str, ...]] = []
    for name, a in result.annotators.items():
        circles = a.cycles if a.cycles and a.cycles.triples else None
        rows.append(
            (
                name,
                span(a.steady, True),
                f"{a.orders.consistency:.0%} of {a.orders.n:.0f}" if a.orders else "",
                span(a.drift) + (" *" if a.drift and a.drift.significant else ""),
                f"{circles.cycles:.0f} of {circles.triples:.0f}" if circles else "",
            )
        )
    return _without_empty(
        ("Annotator", "Same again", "Same in both orders", "Drift", "Circles"), rows
    )


def _bias_table(result: AgreementResult) -> Table:
    """Nats of log-odds; a star marks a significant bias."""
    tested = {kind for a in result.annotators.values() for kind in a.bias}
    kinds = [k for k in BIAS_TARGETS if k in tested] + sorted(tested - BIAS_TARGETS.keys())
    rows: list[list[str]] = []
    for name, a in result.annotators.items():
        if a.bias:
            cells = [
                span(b.figure, digits=1) + (" *" if b.significant else "") if b else ""
                for b in map(a.bias.get, kinds)
            ]
            rows.append([name, *cells, next(iter(a.bias.values())).control])
    return Table(("Annotator", *kinds, "Against"), rows)


def _elo_table(result: AgreementResult) -> Table:
    models = result.strengths.models if result.strengths else {}
    rows = [
        (name, f"{m.elo:.0f} [{m.low:.0f}, {m.high:.0f}]", f"{m.wins:g}", f"{m.games:g}")
        for name, m in sorted(models.items(), key=lambda x: -x[1].elo)
    ]
    return Table(("Model", "Elo", "Won", "Of"), rows)


def _judge_table(result: AgreementResult) -> Table:
    rows: list[tuple[str, ...]] = []
    for name, judge in result.judges.items():
        fit, plan = judge.calibration, judge.audit
        need = plan.checks_to_target
        rows.append(
            (
                name,
                f"{fit.ece_before:.3f}, {fit.ece_after:.3f}" if fit else "",
                f"{plan.checked} of {plan.labels}",
                str(plan.wrong),
                f"{plan.bound:.1%}",
                f"{max(0, need - plan.checked)}" if need is not None else "never",
            )
        )
    head = (
        "Judge",
        "ECE before, after",
        "Checked",
        "Wrong",
        "Error at most",
        "More checks to target",
    )
    return Table(head, rows)


def show(result: AgreementResult) -> None:
    """Log the tables and findings."""
    data = result.data
    on = f", on {data.dimension}" if data.dimension else ""
    log.info(
        plain(
            f"{data.items} items, {data.judgements} judgements by {data.people} people and "
            f"{data.judges} judges{on}; {data.pairs} pairs of completions"
        )
    )
    tables = {
        "Agreement": _agreement_table(result),
        "Kappa": _kappa_table(result),
        "Annotators": _annotator_table(result),
        "Steadiness": _steadiness_table(result),
        "Bias, nats of log-odds (* significant)": _bias_table(result),
        "Judges": _judge_table(result),
        "Models": _elo_table(result),
    }
    for title, table in tables.items():
        if table.rows:
            log.info("\n%s\n%s", title, as_text(table))
    findings = verdicts(result)
    if findings:
        log.info("\nWhat it means")
    for v in findings:
        log.info("- %s. %s", plain(v.title), plain(v.text))
    for name, judge in result.judges.items():
        doubtful = ", ".join(r.item for r in judge.audit.doubtful[:5])
        random = ", ".join(r.item for r in judge.audit.random[:5])
        if random:
            log.info(
                "\nCheck next of %s: at random %s …%s (all in --json)",
                plain(name),
                plain(random),
                f"; most doubtful {plain(doubtful)} …" if doubtful else "",
            )
    for row in result.contradictions.items[:5]:
        log.info("In %d circles: item %s", row.cycles, plain(row.item))


def page(result: AgreementResult, records: Records) -> str:
    """One self-contained page; the texts of items are escaped."""
    data = result.data
    tiles = [
        Tile("Items", str(data.items), f"{data.pairs} pairs of answers"),
        Tile("Judgements", str(data.judgements), "including skipped and failed ones"),
        Tile("People", str(data.people), "including simulated ones"),
        Tile("Judges", str(data.judges), "AI"),
    ]
    for key in ("people", "all"):
        alpha = result.agreement[key].alpha
        if alpha:
            tiles.append(Tile(f"Alpha, {GROUPS[key]}", f"{alpha.value:.2f}", span(alpha)))
            break
    circles = [(r.item, str(r.cycles)) for r in result.contradictions.items]
    sections = [
        Section("", "", verdicts(result), tiles),
        Section(
            "Agreement",
            "Beyond what chance would give: 0 is chance, 1 is always. Compare a judge's kappa with "
            "people with that of people with each other.",
            tables=[_agreement_table(result), _kappa_table(result), _kappa_pairs(result)],
        ),
        Section(
            "Annotators",
            f"People are blue, judges orange; charts show the {MAX_BARS} lowest.",
            charts=_quality_charts(result.annotators),
            tables=[_annotator_table(result), _steadiness_table(result)],
        ),
        Section(
            "Biases",
            "What influences a choice besides quality. Of a hundred unbiased panels, one has a star.",
            charts=_bias_charts(result.annotators),
            tables=[_bias_table(result)],
        ),
        Section(
            "Judges",
            "How far AI labels can be trusted, by those that people checked.",
            charts=_calibration_charts(result),
            tables=[_judge_table(result)],
            picks=_doubtful(result, records),
        ),
        Section(
            "Contradictions",
            "Items whose pairs are in most circles (a over b, b over c, c over a).",
            tables=[Table(("Item", "Circles"), circles)],
        ),
        Section(
            "Models",
            "Bradley-Terry strengths from all verdicts, a tie half a win.",
            charts=_strength_charts(result),
            tables=[_elo_table(result)],
        ),
    ]
    sections = [replace(s, tables=[_unbroken(t) for t in s.tables]) for s in sections]
    return render(sections, "How far the labels can be trusted", footer=FOOTER)


def _unbroken(table: Table) -> Table:
    """A figure stays on one line with its interval; names may break."""
    space = "\N{NO-BREAK SPACE}"
    return Table(table.head, [[r[0], *(c.replace(" ", space) for c in r[1:])] for r in table.rows])


def _quality_charts(annotators: Mapping[str, AnnotatorResult]) -> list[Chart | None]:
    charts: list[Chart | None] = []
    for key, title, unit, see in QUALITY_CHARTS:
        figures = [(name, a.who, getattr(a, key)) for name, a in annotators.items()]
        bars = [Bar(n, f.value, f.low, f.high, int(who == "judge")) for n, who, f in figures if f]
        bars = sorted(bars, key=lambda b: b.value)[:MAX_BARS]
        charts.append(bar_chart(title, bars, unit, f"{see} The dashed line is a coin.", 0.5))
    return charts


def _bias_charts(annotators: Mapping[str, AnnotatorResult]) -> list[Chart | None]:
    """The largest coefficients of each bias."""
    charts: list[Chart | None] = []
    for kind in dict.fromkeys(kind for a in annotators.values() for kind in a.bias):
        tested = [(name, a.bias[kind]) for name, a in annotators.items() if kind in a.bias]
        tested.sort(key=lambda t: -abs(t[1].coef))
        bars = [
            Bar(name, b.coef, b.low, b.high, 1 if b.significant else 5)
            for name, b in tested[:MAX_BARS]
        ]
        see = f"Above 0: prefers {BIAS_TARGETS.get(kind, kind)}. Coloured: significant."
        charts.append(bar_chart(f"Bias: {kind}", bars, "Nats of log-odds", see))
    return charts


def _calibration_charts(result: AgreementResult) -> list[Chart | None]:
    see = "On the diagonal, it is correct as often as it is confident. Larger dots have more pairs."
    charts: list[Chart | None] = []
    for name, judge in result.judges.items():
        if judge.calibration:
            before, after = judge.calibration.bins_before, judge.calibration.bins_after
            charts.append(calibration_chart(f"{name}: as given", before, see))
            charts.append(calibration_chart(f"{name}: calibrated, on other items", after, see))
    return charts


def _strength_charts(result: AgreementResult) -> list[Chart | None]:
    models = result.strengths.models if result.strengths else {}
    lowest = min((m.low for m in models.values()), default=0.0)
    chart = bar_chart(
        "Strength",
        [
            Bar(name, m.elo - lowest, m.low - lowest, m.high - lowest, 0)
            for name, m in sorted(models.items(), key=lambda x: -x[1].elo)
        ],
        "Elo points above the lowest bound",
        "Where intervals overlap, the order is not certain.",
    )
    return [chart]


def _doubtful(result: AgreementResult, records: Records, most: int = 3) -> list[Pick]:
    picks: list[Pick] = []
    for name, judge in result.judges.items():
        for pair in judge.audit.doubtful[:most]:
            item = records.items[pair.item]
            prompt = "\n".join(f"{m.get('role', '')}: {m.get('content', '')}" for m in item.prompt)
            picks.append(
                Pick(
                    _cut(prompt),
                    [Answer(f"Answer {k + 1}", _cut(item.completions[k])) for k in pair.answers],
                    f"To check next: {name} is wrong here with probability {pair.doubt or 0:.0%} "
                    f"(item {item.id})",
                )
            )
    return picks


def _cut(text: str, most: int = 1500) -> str:
    return text if len(text) <= most else text[:most] + " …"
