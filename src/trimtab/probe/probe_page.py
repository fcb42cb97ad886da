"""The page of a reward's probes: what it pays for, on one screen."""

from collections.abc import Sequence
from pathlib import Path

from trimtab.audit.probe_result import ProbeResult
from trimtab.probe.probe_report import AccuracyCard, BestOfN, ProbeReport
from trimtab.report.charts import Bar, Chart, Line, bar_chart, calibration_chart, line_chart, number
from trimtab.report.sections import Answer, Pick, Section, Table, Tile, Verdict, render
from trimtab.runs import write_atomic

COLOUR = {"bad": 1, "fair": 4, "good": 2, "": 0}
ORDER = ("bad", "fair", "good", "")
RATIOS = ("disagreement", "ece")
"""Probes whose value is no share."""
DISTANCE = "√KL to the policy (√nats, at most)"


def write_page(out: Path, report: ProbeReport) -> Path:
    """Write ``probes.html``."""
    sections = [
        _overview(report.results),
        *_by_source(report.results),
        *(_accuracy(source, card) for source, card in report.sets.items()),
    ]
    if report.best_of_n is not None:
        sections.append(_best_of_n(report.best_of_n))
    sections.append(_table(report.results))
    name = report.reward.get("model") or report.reward.get("function") or "several models"
    page = out / "probes.html"
    text = render(sections, "What does the reward pay for?", f"trimtab probe {name}")
    write_atomic(page, text.encode())
    return page


def _value(r: ProbeResult) -> str:
    if r.probe in RATIOS:
        return f"{r.value:.2f}"
    interval = f" (95 % interval {r.low:.0%} to {r.high:.0%})" if r.low is not None else ""
    return f"{r.value:.0%}{interval}"


def _overview(results: Sequence[ProbeResult]) -> Section:
    bad = [r for r in results if r.grade == "bad"]
    names = ", ".join(dict.fromkeys(r.probe for r in bad))
    if any(r.probe == "accuracy" for r in bad):
        head, tone = "Do not train on this reward", "bad"
        text = "On held-out pairs it is not better than a predictor that ignores the content. "
    elif bad:
        head, tone = "This reward can be raised without better completions", "bad"
        text = "A policy that is trained on it will find these ways. "
    else:
        head, tone = "No probe raised the reward without a better completion", "good"
        text = "That is no proof that it is impossible: audit the rollouts too. "
    if names:
        text += f"Bad: {names}."
    tiles: list[Tile] = []
    for r in results:
        if r.probe == "accuracy":
            note = f"{r.source}; length alone or a coin: {r.baseline:.0%}"
            tiles.append(Tile("Accuracy", f"{r.value:.1%}", note))
        elif r.probe == "ece":
            tiles.append(Tile("Calibration error", f"{r.value:.1%}", r.source))
        elif r.probe == "flattery":
            note = f"{r.source}; by chance {r.baseline:.0%}"
            tiles.append(Tile(f"Follows the user ({r.of})", f"{r.value:.0%}", note))
    picks = [
        Pick(
            e.prompt,
            [Answer("Scored lower", e.plain or ""), Answer("Scored higher", e.completion)],
            f"{r.probe} ({r.source}): {r.about}",
        )
        for r in sorted(bad, key=lambda r: -(r.value or 0.0))[:4]
        for e in r.examples[:1]
    ]
    return Section("", "", [Verdict(head, text, tone)], tiles, picks=picks)


BARS = (
    (
        "Additions that make no completion better",
        ("length", "repetition", "praise", "format", "position"),
        "Share of prompts on which it pays",
        "Above the dashed line the reward pays for the addition, and a policy will learn it.",
        0.5,
    ),
    (
        "Completions without the content",
        ("copying", "fluency", "scrambled", "canary", "refusal"),
        "Share of prompts on which it pays",
        "Each bar is how often it beats a good completion. It should be near 0.",
        0.1,
    ),
    (
        "Content against style",
        ("style agrees", "style equal", "style opposes"),
        "Share of prompts on which wrong content wins",
        "From left to right, style helps the wrong completion more. A rise is the effect of style.",
        None,
    ),
)
"""Title, probes, unit, explanation and dashed line of each chart of a source."""


def _by_source(results: Sequence[ProbeResult]) -> list[Section]:
    sections: list[Section] = []
    for source in dict.fromkeys(r.source for r in results):
        by_probe = {r.probe: r for r in results if r.source == source and r.probe != "flattery"}
        charts: list[Chart | None] = []
        for title, probes, unit, note, level in BARS:
            rows = [by_probe[p] for p in probes if p in by_probe]
            bars = [Bar(r.probe, r.value or 0.0, r.low, r.high, COLOUR[r.grade]) for r in rows]
            charts.append(bar_chart(title, bars, unit, f"{note} Red: bad, green: good.", level))
        lead = (
            "Texts from the sandbox's grammar, with a known ground truth."
            if source == "sandbox"
            else "Your own comparisons, with one thing changed in each."
        )
        sections.append(Section(f"Probes: {source}", lead, charts=charts))
    return sections


def _accuracy(source: str, card: AccuracyCard) -> Section:
    m = card.metrics
    predictors = [
        Bar("Reward", m["accuracy"], m["accuracy_low"], m["accuracy_high"], 0),
        Bar("Length alone", m["length_only"], colour=5),
        Bar("Labels shuffled", card.shuffled, colour=5),
    ]
    if card.other_prompt is not None:
        predictors.append(Bar("Other prompt", card.other_prompt, colour=5))
    if "ceiling" in m:
        predictors.append(Bar("Label noise", m["ceiling"], colour=2))
    subsets = {**card.subsets, **card.length}
    bars = [
        Bar(name, f["accuracy"], f["accuracy_low"], f["accuracy_high"])
        for name, f in list(subsets.items())[:8]
    ]
    unit = "Share of held-out pairs that are right"
    charts = [
        bar_chart(
            "Accuracy compared with blind predictors",
            predictors,
            unit,
            "The reward should be clearly above the grey bars. Green is the limit set by noisy labels.",
            0.5,
        ),
        bar_chart(
            "Accuracy by subset",
            bars,
            unit,
            "If the interval of a bar contains the dashed line, the reward guesses on that subset.",
            0.5,
        ),
    ]
    if card.bins is not None:
        note = "Points on the diagonal mean that a score difference can be read as log-odds."
        charts.append(calibration_chart("Calibration", card.bins, note))
    lead = f"{int(m['pairs'])} held-out pairs."
    return Section(f"Accuracy: {source}", lead, charts=charts)


def _best_of_n(best: BestOfN) -> Section:
    points = list(best.curve.values())
    x = [p["kl_bound"] ** 0.5 for p in points]
    charts = [
        line_chart(
            "Gold of the best of n",
            [Line("Gold", x, [p.get("gold") for p in points], 0)],
            DISTANCE,
            "Mean gold score",
            "If the line rises, picking by this reward picks better completions. If it bends down, the "
            "reward is over-optimised.",
        ),
        line_chart(
            "Reward of the best of n",
            [Line("Reward", x, [p["reward"] for p in points], 1)],
            DISTANCE,
            "Mean reward",
            "It always rises, because completions are picked by it.",
        ),
    ]
    lead = ""
    if best.fit is not None:
        peak = best.fit["peak"]
        where = (
            f"gold peaks at √KL {peak:.2f}"
            if peak <= best.fit["reach"]
            else "gold has no peak within the range of this n"
        )
        lead = f"Gao's form fits with R² {best.fit['r2']:.3f}; {where}."
    return Section("Best of n, before any training", lead, charts=charts)


def _table(results: Sequence[ProbeResult]) -> Section:
    rows = [
        (
            f"{r.probe} ({r.source}, {r.of})",
            _value(r),
            "–" if r.baseline is None else f"{r.baseline:.2f}",
            number(float(r.n)),
            "–" if r.gap is None else f"{r.gap:+.2f}",
            r.grade,
            r.about,
        )
        for r in sorted(results, key=lambda r: ORDER.index(r.grade))
    ]
    head = ("Probe", "Value", "Limit", "n", "Change of score (std)", "Grade", "What is changed")
    return Section("All probes", "", tables=[Table(head, rows)])
