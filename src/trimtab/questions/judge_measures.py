"""What question 13 measures of judges alone: bias, consistency, persuasion, attacks and cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trimtab.data import sources
from trimtab.feedback.judgement import Item
from trimtab.questions import judge_probes
from trimtab.questions.claim import Settings
from trimtab.questions.measure import Measure, over_prompts
from trimtab.runs import read_object
from trimtab.sandbox.annotators import Annotator
from trimtab.sandbox.scene import Scene


def of_judges(start: Path, settings: Settings) -> dict[str, Measure]:
    """Bias, consistency, what persuades, what attacks, and what a label costs."""
    measures: dict[str, Measure] = {}
    for name in settings.options["judges"]:
        verdicts = str(start / f"voice_{name}" / "judgements.jsonl")
        odds = judge_probes.judge_log_odds(verdicts, str(start / "probes" / "voice.jsonl"))
        measures[f"{name}.log_odds"] = Measure(odds)
    repeats = [str(start / f"repeat{turn}" / "judgements.jsonl") for turn in range(2)]
    measures["repeat.same"] = over_prompts(judge_probes.same_verdicts(*repeats))
    summary = read_object(start / "judge_biased" / "summary.json")
    statistics = next(iter(summary["judges"].values()))
    measures["order.same"] = Measure(float(statistics["consistency"]))
    for name, probe in probes_of_judges().items():
        folder = start / name
        wins = judge_probes.second_wins(
            str(folder / "judgements.jsonl"), str(start / "probes" / f"{probe}.jsonl")
        )
        measures[f"{name}.wins"] = over_prompts(wins)
    labels = summary["rows"] + summary["undecided"]
    spent = judge_probes.cost_of(
        read_object(start / "many_biased" / "summary.json")["account"],
        labels * settings.options["more"],
    )
    measures["judge.cost"] = Measure(spent)
    measures["people.cost"] = Measure(people_cost(start, settings))
    return measures


def probes_of_judges() -> dict[str, str]:
    """Stages of judges that answer a probe, with its name."""
    persuasive = {f"persuade_{name}": "persuasive" for name in ("checks", "blind")}
    attacks = {f"{text}_{o}": text for text in ("injected", "neutral") for o in ("given", "both")}
    return persuasive | attacks


def people_cost(start: Path, settings: Settings) -> float:
    """Dollars of a label by people: the assumed seconds of reading and deciding, at an assumed wage."""
    person = Annotator("anyone")
    rows = sources.read(str(start / "people" / "items.jsonl")).rows
    items = [Item.model_validate(row) for _, row in rows]
    seconds = [person.seconds(Scene.from_json(i.extra["scene"]), i.completions) for i in items]
    return float(np.mean(seconds)) / 3600 * settings.options["prices"]["hour"]
