"""The figures of ``trimtab agreement`` as tables in the terminal and as a page."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rich.markup import escape
from rich.table import Table as Shown

from trimtab.evaluate.agreement_findings import SWAYS, span, verdicts
from trimtab.feedback.records import Records
from trimtab.report.charts import Bar, bar_chart, calibration_chart
from trimtab.report.sections import Answer, Pick, Section, Table, Tile, render
from trimtab.runs.console import console

Found = dict[str, Any]
NAMES = {"all": "everyone", "people": "people", "judges": "judges"}
PAIRS = {"person-person": "person and person", "judge-person": "judge and person",
         "judge-judge": "judge and judge"}  # fmt: skip
MOST = 6
"""Bars in a chart; the tables have everyone."""
FOOTER = (
    "Intervals are 95 %; those of agreement, kappa and accuracy are bootstraps over items. "
    "docs/agreement.md has every formula and its source."
)


def agreement_table(found: Found) -> Table:
    """Groups of annotators, then means of kappa."""
    rows: list[tuple[str, ...]] = []
    for key, name in NAMES.items():
        group = found["agreement"][key]
        if group.get("units"):
            fleiss = group["fleiss"]
            rows.append(
                (name, str(group["units"]), span(group["percent"], True), span(group["alpha"]),
                 f"{span(fleiss)} ({fleiss['raters']} labels)" if fleiss else "")
            )  # fmt: skip
    for name, group in found["dimensions"].items():
        if group.get("units"):
            rows.append(
                (f"on {name}", str(group["units"]), span(group["percent"], True), span(group["alpha"]),
                 span(group["fleiss"]))
            )  # fmt: skip
    for name, alpha in found["scores"].items():
        if alpha:
            rows.append((f"scores, {name}", str(alpha["answers"]), "", span(alpha), ""))
    return Table(("Group", "Pairs", "Same label", "Krippendorff alpha", "Fleiss kappa"), rows)


def kappa_table(found: Found) -> Table:
    """Means over pairs of annotators."""
    rows = [
        (PAIRS.get(str(k), str(k)), str(v["pairs"]), span(v))
        for k, v in found["kappa"]["means"].items()
        if v
    ]
    return Table(("Between", "Pairs of annotators", "Cohen kappa, mean"), rows)


def kappa_pairs(found: Found, most: int = 15) -> Table:
    """The pairs of annotators who share most."""
    rows = [
        (f"{r['a']} and {r['b']}", str(r["units"]), span(r["kappa"]))
        for r in found["kappa"]["pairs"][:most]
    ]
    return Table(("Annotators", "Shared pairs", "Cohen kappa"), rows)


def _kept(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    """Without the columns that none has anything in, and the rows that have nothing."""
    kept = [i for i in range(len(head)) if i == 0 or any(r[i] for r in rows)]
    full = [[r[i] for i in kept] for r in rows if any(r[1:])]
    return Table([head[i] for i in kept], full)


def annotator_table(found: Found) -> Table:
    """How much each did, and how well."""
    head = ("Annotator", "Judged", "Ties", "Seconds", "Accuracy", "With people", "Gold")
    return _kept(
        head,
        [
            (
                f"{name} (judge)" if m["who"] == "judge" else name,
                str(m["judgements"]),
                f"{m['ties']:.0%}" if m["ties"] is not None else "",
                f"{m['seconds']:.0f}" if m["seconds"] is not None else "",
                span(m["accuracy"], True),
                span(m["with_people"], True),
                span(m["gold"], True),
            )
            for name, m in found["annotators"].items()
        ],
    )


def steady_table(found: Found) -> Table:
    """How far each agrees with themselves."""
    rows: list[tuple[str, ...]] = []
    for name, m in found["annotators"].items():
        cycles, orders, drift = m["cycles"], m["orders"], m["drift"]
        circles = cycles and cycles["triples"]
        rows.append(
            (
                name,
                span(m["steady"], True),
                f"{orders['consistency']:.0%} of {orders['n']:.0f}" if orders else "",
                span(drift) + (" *" if drift["found"] else "") if drift else "",
                f"{cycles['cycles']:.0f} of {cycles['triples']:.0f}" if circles else "",
            )
        )
    return _kept(("Annotator", "Same again", "Same in both orders", "Drift", "Circles"), rows)


def bias_table(found: Found) -> Table:
    """Nats of log-odds; a star where the bias is found."""
    kinds = [k for k in SWAYS if any(k in m["bias"] for m in found["annotators"].values())]
    kinds += sorted({k for m in found["annotators"].values() for k in m["bias"]} - set(kinds))
    rows: list[list[str]] = []
    for name, m in found["annotators"].items():
        if not m["bias"]:
            continue
        row = [name]
        for kind in kinds:
            b = m["bias"].get(kind)
            text = span({**b, "value": b["coef"]}, digits=1) if b else ""
            row.append(text + (" *" if b and b["found"] else ""))
        row.append({"gold": "gold", "others": "others"}[next(iter(m["bias"].values()))["control"]])
        rows.append(row)
    return Table(("Annotator", *kinds, "Against"), rows)


def elo_table(found: Found) -> Table:
    """Models by strength."""
    models = (found["strengths"] or {}).get("models", {})
    rows = [
        (
            name,
            f"{m['elo']:.0f} [{m['low']:.0f}, {m['high']:.0f}]",
            f"{m['wins']:g}",
            f"{m['games']:g}",
        )
        for name, m in sorted(models.items(), key=lambda x: -x[1]["elo"])
    ]
    return Table(("Model", "Elo", "Won", "Of"), rows)


def judge_table(found: Found) -> Table:
    """Calibration and audit."""
    rows: list[tuple[str, ...]] = []
    for name, told in found["judges"].items():
        fit, plan = told["calibration"], told["audit"]
        need = plan["checks_to_target"]
        rows.append(
            (name, f"{fit['ece_before']:.3f}, {fit['ece_after']:.3f}" if fit else "",
             f"{plan['checked']} of {plan['labels']}", str(plan["wrong"]), f"{plan['bound']:.1%}",
             f"{max(0, need - plan['checked'])}" if need is not None else "never")
        )  # fmt: skip
    head = (
        "Judge",
        "ECE before, after",
        "Checked",
        "Wrong",
        "Error at most",
        "More checks to target",
    )
    return Table(head, rows)


def show(found: Found) -> None:
    """Print it."""
    data = found["data"]
    of = f", on {data['dimension']}" if data["dimension"] else ""
    console.print(
        plain(
            f"{data['items']} items, {data['judgements']} judgements by {data['people']} people and "
            f"{data['judges']} judges{of}; {data['pairs']} pairs of answers"
        )
    )
    for title, table in (
        ("Agreement", agreement_table(found)), ("Kappa", kappa_table(found)),
        ("Annotators", annotator_table(found)),
        ("Steadiness", steady_table(found)),
        ("Bias, nats of log-odds (* found)", bias_table(found)),
        ("Judges", judge_table(found)), ("Models", elo_table(found)),
    ):  # fmt: skip
        if not table.rows:
            continue
        console.print(f"\n[bold]{title}[/bold]")
        shown = Shown(box=None, pad_edge=False, header_style="dim")
        for place, name in enumerate(table.head):
            shown.add_column(name, justify="left" if place == 0 else "right", overflow="fold")
        for row in table.rows:
            shown.add_row(*map(plain, row))
        console.print(shown)
    told = verdicts(found)
    if told:
        console.print("\n[bold]What it means[/bold]")
    colour = {"good": "green", "bad": "red", "fair": "yellow"}
    for v in told:
        console.print(f"[{colour[v.tone]}]•[/] [bold]{plain(v.title)}.[/bold] {plain(v.text)}")
    for name, judge in found["judges"].items():
        unsure = [r["item"] for r in judge["audit"]["doubtful"]][:5]
        drawn = [r["item"] for r in judge["audit"]["random"]][:5]
        if drawn:
            console.print(
                f"\nCheck next of {plain(name)}: at random {plain(', '.join(drawn))} …"
                + (f"; most doubtful {plain(', '.join(unsure))} …" if unsure else "")
                + " (all in --json)"
            )
    for row in found["contradictions"]["items"][:5]:
        console.print(f"In {row['cycles']} circles: item {plain(row['item'])}")


def plain(text: str) -> str:
    """Text of others for a terminal: no markup, no control characters."""
    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))


def page(found: Found, records: Records) -> str:
    """One self-contained page; the texts of items are data in it."""
    data = found["data"]
    tiles = [
        Tile("Items", str(data["items"]), f"{data['pairs']} pairs of answers"),
        Tile("Judgements", str(data["judgements"]), "skipped and failed ones too"),
        Tile("People", str(data["people"]), "and simulated ones"),
        Tile("Judges", str(data["judges"]), "AI"),
    ]
    for key in ("people", "all"):
        alpha = found["agreement"][key].get("alpha")
        if alpha:
            tiles.append(Tile(f"Alpha, {NAMES[key]}", f"{alpha['value']:.2f}", span(alpha)))
            break
    annotators = found["annotators"]

    def bars(key: str) -> list[Bar]:
        found = [
            Bar(
                name,
                m[key]["value"],
                m[key]["low"],
                m[key]["high"],
                1 if m["who"] == "judge" else 0,
            )
            for name, m in annotators.items()
            if m[key]
        ]
        return sorted(found, key=lambda b: b.value)[:MOST]

    quality = [
        bar_chart("Accuracy", bars("accuracy"), "P(says the true class)",
                  "By Dawid and Skene: the truth is what all annotators together make likely.", 0.5),
        bar_chart("With the majority of the other people", bars("with_people"), "Share of pairs",
                  "The dashed line is a coin.", 0.5),
        bar_chart("Against the known answer", bars("gold"), "Share of pairs",
                  "On items with a gold answer. The dashed line is a coin.", 0.5),
    ]  # fmt: skip
    kinds = list(dict.fromkeys(k for m in annotators.values() for k in m["bias"]))
    sways = [
        bar_chart(
            f"Bias: {kind}", _sway(annotators, kind), "Nats of log-odds",
            f"Above 0: drawn to {SWAYS.get(kind, kind)}. Coloured: found; grey: it may be chance.",
        )
        for kind in kinds
    ]  # fmt: skip
    curves = [
        calibration_chart(
            f"{name}: {when}", told["calibration"][key],
            "Dots on the diagonal: as often right as it is sure. Larger dots hold more pairs.",
        )
        for name, told in found["judges"].items() if told["calibration"]
        for key, when in (("bins_before", "as given"), ("bins_after", "calibrated, on other items"))
    ]  # fmt: skip
    models = (found["strengths"] or {}).get("models", {})
    lowest = min((m["low"] for m in models.values()), default=0.0)
    standing = bar_chart(
        "Strength", [Bar(n, m["elo"] - lowest, m["low"] - lowest, m["high"] - lowest, 0)
                     for n, m in sorted(models.items(), key=lambda x: -x[1]["elo"])],
        "Elo points above the lowest bound", "Intervals that overlap leave the order open.",
    )  # fmt: skip
    sections = [
        Section("", "", verdicts(found), tiles),
        Section("Agreement", "Beyond what chance would give: 0 is chance, 1 is always. A judge's "
                "kappa with people is to be read beside that of people with each other.",
                tables=[t for t in (agreement_table(found), kappa_table(found), kappa_pairs(found)) if t.rows]),
        Section("Annotators", f"People are blue, judges orange; charts hold the {MOST} lowest.",
                charts=[c for c in quality if c], tables=[t for t in (annotator_table(found), steady_table(found)) if t.rows]),
        Section("Biases", "What sways a choice beside quality. A star marks what would be found in "
                "one of a hundred unbiased panels only.",
                charts=[c for c in sways if c],
                tables=[t for t in (bias_table(found),) if t.rows]),
        Section("Judges", "How far AI labels can be believed, by those that people checked.",
                charts=[c for c in curves if c], tables=[t for t in (judge_table(found),) if t.rows],
                picks=_doubtful(found, records)),
        Section("Contradictions", "Items whose pairs are in most circles (a over b, b over c, c over a).",
                tables=[Table(("Item", "Circles"),
                              [(r["item"], str(r["cycles"])) for r in found["contradictions"]["items"]])]
                if found["contradictions"]["items"] else []),
        Section("Models", "Bradley-Terry strengths from all verdicts, a tie half a win.",
                charts=[standing] if standing else [],
                tables=[t for t in (elo_table(found),) if t.rows]),
    ]  # fmt: skip
    firm = [replace(s, tables=[_firm(t) for t in s.tables]) for s in sections]
    return render(firm, "How far the labels can be trusted", footer=FOOTER)


def _firm(table: Table) -> Table:
    """Figures stay on one line with their interval; names may break."""
    space = "\N{NO-BREAK SPACE}"
    return Table(table.head, [[r[0], *(c.replace(" ", space) for c in r[1:])] for r in table.rows])


def _sway(annotators: Found, kind: str) -> list[Bar]:
    """The strongest, whichever way."""
    told = [(name, m["bias"][kind]) for name, m in annotators.items() if kind in m["bias"]]
    told.sort(key=lambda t: -abs(t[1]["coef"]))
    return [
        Bar(name, b["coef"], b["low"], b["high"], 1 if b["found"] else 5) for name, b in told[:MOST]
    ]


def _doubtful(found: Found, records: Records, most: int = 3) -> list[Pick]:
    picks: list[Pick] = []
    for name, told in found["judges"].items():
        for row in told["audit"]["doubtful"][:most]:
            item = records.items[row["item"]]
            asked = "\n".join(f"{m.get('role', '')}: {m.get('content', '')}" for m in item.prompt)
            picks.append(
                Pick(
                    _cut(asked),
                    [Answer(f"Answer {k + 1}", _cut(item.completions[k])) for k in row["answers"]],
                    f"To check next: {name} is probably wrong here with {row['doubt']:.0%} (item {item.id})",
                )
            )
    return picks


def _cut(text: str, most: int = 1500) -> str:
    return text if len(text) <= most else text[:most] + " …"
