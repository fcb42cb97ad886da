"""The page of a question, from its ``result.json`` and the text of a language.

A text holds no number of its own: numbers come from the result through placeholders such as
``{3.2[trouble=none].effect}`` and ``{arm:beta=0.gold}``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.config import read_yaml
from trimtab.errors import DataError
from trimtab.questions import claim as registry
from trimtab.questions import experiment, pretrained
from trimtab.questions.claim import LANGUAGES, Claim
from trimtab.questions.experiment import Result
from trimtab.questions.verdict import CONFIDENCE, PROVISIONAL_CONFIDENCE
from trimtab.report.charts import Chart
from trimtab.runs import read_object

Text = Mapping[str, Any]
PREDICTIONS = "predictions.json"
PLACEHOLDER = re.compile(r"\{([^{}]+)\}")


def read_text(language: str) -> Text:
    """The text of a language: ``common``, ``glossary`` and ``questions`` (by number)."""
    assert language in LANGUAGES, language
    folder = registry.HERE / "text"
    of_questions = registry.read_by_question(folder, f"q[0-9][0-9].{language}.yaml")
    return {
        **read_yaml(folder / f"common.{language}.yaml"),
        "questions": {str(number): text for number, _, text in of_questions},
    }


def fill(text: str, values: Mapping[str, str], where: str) -> str:
    """``text`` with its placeholders replaced.

    Raises:
        DataError: a placeholder has no value.

    >>> fill("beta {beta}", {"beta": "0.2"}, "text")
    'beta 0.2'
    """

    def value_of(match: re.Match[str]) -> str:
        name = match[1]
        if name not in values:
            raise DataError(f"{where}: there is no value for {{{name}}}")
        return values[name]

    return PLACEHOLDER.sub(value_of, text)


def number(value: float | None, *, percent: bool = False, signed: bool = True) -> str:
    """A number as pages show it.

    >>> number(0.03125), number(-0.2, percent=True), number(None)
    ('+0.031', '−20 %', '–')
    """
    if value is None:
        return "–"
    sign = "+" if signed else ""
    text = f"{100 * value:{sign}.0f} %" if percent else f"{value:{sign}.3f}"
    return text.replace("-", "−")


@dataclass(frozen=True, slots=True)
class Row:
    """A claim in the table: its text, and a line for each condition."""

    id: str
    claim: str
    measured: Sequence[str]
    verdict: Sequence[str]
    published: Sequence[str]
    guess: str = ""


@dataclass(frozen=True, slots=True)
class PretrainedRow:
    """A claim that was put to a pretrained model."""

    id: str
    claim: str
    measured: str
    verdict: str
    small: str
    """The verdict on the small model of the same claim."""


@dataclass(frozen=True, slots=True)
class Page:
    """What a page says, in order."""

    language: str
    title: str
    question: str
    notes: Sequence[str]
    answer: Sequence[str]
    rows: Sequence[Row]
    pretrained: Sequence[PretrainedRow]
    pretrained_note: str
    figure: Chart | None
    follow_up: str
    commands: Sequence[tuple[str, str]]
    """Command and what it does."""
    exercises: Sequence[tuple[str, str]]
    """Task and answer."""
    own_run: tuple[str, str]
    """Command (may be empty) and text."""
    limits: Sequence[str]
    references: Sequence[str]
    words: Mapping[str, str] = field(default_factory=dict[str, str])
    """Headings and heads of the table."""


class Writer:
    """Turns a result into a page in one language."""

    def __init__(
        self,
        result: Result,
        cost: Mapping[str, Any],
        predictions: Mapping[str, str],
        language: str,
        of_pretrained: Mapping[str, Any] | None = None,
    ) -> None:
        self.result, self.predictions, self.language = result, predictions, language
        self.of_pretrained = of_pretrained or {}
        self.number: int = result["question"]
        text = read_text(language)
        self.common: Text = text["common"]
        self.text: Text = text["questions"][str(self.number)]
        self.claims = registry.load_claims()[self.number]
        self.values = self._values(cost)

    def _values(self, cost: Mapping[str, Any]) -> dict[str, str]:
        """Every placeholder that a text may use."""
        settings = registry.load_settings()[self.number]
        seconds = cost.get("seconds_per_seed", 60 * settings.minutes)
        values = {
            "number": str(self.number),
            "settings": f"q{self.number:02}.yaml",
            "hash": self.result["hash"],
            "seeds": str(len(self.result["seeds"])),
            "looks": str(experiment.LOOKS[0]),
            "minutes": number(max(1, round(seconds / 60)), signed=False).partition(".")[0],
            "size": f"{self.result['size']:g}",
        }
        for c in self.claims:
            judged = self.result["claims"][c.key]
            for name in ("effect", "low", "high"):
                values[f"{c.key}.{name}"] = number(judged[name], percent=c.relative)
            values[f"{c.key}.verdict"] = self.outcome(judged["outcome"], judged["reason"])
            values[f"{c.key}.seeds_needed"] = str(judged["seeds_needed"] or "–")
            values[f"{c.key}.smallest"] = number(
                c.smallest_effect, percent=c.relative, signed=False
            )
            values[f"{c.id}.verdict"] = self.outcome(self.result["verdicts"][c.id], "")
        for arm, metrics in self.result["arms"].items():
            for metric, over_seeds in metrics.items():
                mean = float(np.mean(over_seeds))
                values[f"arm:{arm}.{metric}"] = number(mean, signed=False)
        for name, option in settings.options.items():
            if isinstance(option, int | float):
                values[f"option:{name}"] = f"{option:g}"
        return values

    def outcome(self, outcome: str, reason: str) -> str:
        """A verdict in words."""
        words = self.common["outcomes"][outcome]
        if not reason:
            return words
        parts = {"outcome": words, "reason": self.common["reasons"][reason]}
        return fill(self.common["reason"], parts, "common.reason")

    def filled(self, text: str, where: str, **more: str) -> str:
        """``text`` with its placeholders replaced."""
        place = f"text/q{self.number:02}.{self.language}.yaml: {where}"
        return fill(text, {**self.values, **more}, place)

    def condition(self, c: Claim) -> str:
        """The condition of a claim in words."""
        parts: list[str] = []
        for name, value in c.condition.items():
            words = self.text["conditions"][name]
            if isinstance(words, Mapping):
                parts.append(words[str(value)])
            else:
                parts.append(fill(words, {"value": f"{value:g}"}, f"conditions.{name}"))
        return self.common["comma"].join(parts)

    def measured(self, c: Claim, judged: Mapping[str, Any]) -> str:
        """Effect, interval and smallest effect of interest."""
        effect, low, high = (
            number(judged[name], percent=c.relative) for name in ("effect", "low", "high")
        )
        interval = "" if judged["low"] is None else f" [{low}, {high}]"
        smallest = number(c.smallest_effect, percent=c.relative, signed=False)
        return f"{effect}{interval}{self.common['comma']}δ = {smallest}"

    def means(self, c: Claim) -> str:
        """What the two arms of a claim measured, in brackets; empty if it is compared with zero."""
        if c.versus == 0:
            return ""
        seeds = self.result["claims"][c.key]["seeds"]  # those that the effect is of
        mean_of_arms = [
            number(float(np.mean(self.result["arms"][arm][c.metric][:seeds])), signed=False)
            for arm in c.arms
        ]
        other = mean_of_arms[1] if isinstance(c.versus, str) else f"{c.versus:g}"
        values = {"value": mean_of_arms[0], "other": other}
        return fill(self.common["means"], values, "common.means")

    def verdict(self, c: Claim) -> str:
        """The verdict of one condition; undecided with the seeds that would decide."""
        judged = self.result["claims"][c.key]
        words = self.outcome(judged["outcome"], judged["reason"])
        if judged["seeds_needed"]:
            more = fill(
                self.common["needs"], {"seeds": str(judged["seeds_needed"])}, "common.needs"
            )
            words = f"{words}{self.common['comma']}{more}"
        return words

    def published(self, claims: Sequence[Claim]) -> list[str]:
        """What papers say of a claim."""
        papers = claims[0].published
        if not papers:
            return [self.common["none_found"]]
        stance = self.common["stance"]
        kinds = {True: stance["agrees"], False: stance["contradicts"], None: stance["mixed"]}
        return [
            fill(
                self.common["paper"],
                {
                    "paper": f"arXiv:{p.arxiv}{'†' if p.from_memory else ''}",
                    "stance": kinds[p.agrees],
                    "says": p.says[self.language],
                },
                "common.paper",
            )
            for p in papers
        ]

    def row(self, claim_id: str) -> Row:
        """The row of a claim."""
        claims = [c for c in self.claims if c.id == claim_id]
        measured = [self.measured(c, self.result["claims"][c.key]) + self.means(c) for c in claims]
        verdicts = [self.verdict(c) for c in claims]
        if claims[0].condition:
            colon = self.common["colon"]
            names = [self.condition(c) for c in claims]
            measured = [f"{n}{colon}{m}" for n, m in zip(names, measured, strict=True)]
            if len(set(verdicts)) == 1:
                verdicts = verdicts[:1]
            else:
                verdicts = [f"{n}{colon}{v}" for n, v in zip(names, verdicts, strict=True)]
                verdicts.insert(0, self.outcome(self.result["verdicts"][claim_id], ""))
        guess = self.predictions.get(claim_id, "")
        return Row(
            claim_id,
            self.filled(self.text["claims"][claim_id]["claim"], f"claims.{claim_id}.claim"),
            measured,
            verdicts,
            self.published(claims),
            self.common["outcomes"][guess] if guess else "",
        )

    def pretrained_row(self, c: Claim) -> PretrainedRow:
        """The row of a claim that was put to a pretrained model."""
        judged = self.of_pretrained["claims"][c.id]
        return PretrainedRow(
            c.id,
            self.filled(self.text["pretrained"][c.id], f"pretrained.{c.id}"),
            self.measured(c, judged),
            self.outcome(judged["outcome"], judged["reason"]),
            self.outcome(self.result["verdicts"][c.id], ""),
        )

    def sentence(self, claim_id: str) -> str:
        """What the answer says of a claim, by its verdict; by condition where these differ."""
        texts: Mapping[str, str] = self.text["claims"][claim_id]
        outcome = self.result["verdicts"][claim_id]
        if outcome in texts:
            sentence = self.filled(texts[outcome], f"claims.{claim_id}.{outcome}")
        else:
            statement = self.filled(texts["claim"], f"claims.{claim_id}.claim")
            values = {"claim": statement.rstrip(".。")}
            sentence = fill(self.common["undecided_sentence"], values, "common.undecided_sentence")
        claims = [c for c in self.claims if c.id == claim_id]
        outcomes = [self.result["claims"][c.key]["outcome"] for c in claims]
        if len(set(outcomes)) < 2:
            return sentence
        parts = [
            f"{self.condition(c)}{self.common['colon']}{self.outcome(outcome, '')}"
            for c, outcome in zip(claims, outcomes, strict=True)
        ]
        values = {"sentence": sentence.rstrip(".。"), "parts": self.common["semicolon"].join(parts)}
        return fill(self.common["by_condition"], values, "common.by_condition")

    def page(self) -> Page:
        """The page."""
        text, common = self.text, self.common
        ids = list(dict.fromkeys(c.id for c in self.claims))
        state = "provisional" if any(v["provisional"] for v in self.result["claims"].values()) else "tested"  # fmt: skip
        level = f"{100 * (CONFIDENCE if state == 'tested' else PROVISIONAL_CONFIDENCE):g} %"
        note_names = [state, "frozen", "reading"]
        note_names += ["gold"] * any(c.metric == "gold" for c in self.claims)
        note_names += ["memory"] * any(p.from_memory for c in self.claims for p in c.published)
        notes = [self.filled(common["notes"][n], f"notes.{n}", level=level) for n in note_names]
        if self.result["size"] != 1:
            notes.append(self.filled(common["notes"]["small"], "notes.small"))
        papers = {p.arxiv for c in self.claims for p in c.published}
        limits = [self.filled(x, "limits") for x in text["limits"]]
        limits += [self.filled(x, f"untested.{k}") for k, x in text.get("untested", {}).items()]
        judged = pretrained.claims_of(self.number) if self.of_pretrained else ()
        pretrained_values = {
            "model": pretrained.MODEL,
            "recipe": pretrained.RECIPE,
            "prompts": str(self.of_pretrained.get("prompts", "")),
        }
        return Page(
            language=self.language,
            title=self.filled(text["title"], "title"),
            question=self.filled(text["question"], "question"),
            notes=notes,
            answer=[self.sentence(i) for i in text["answer"]],
            rows=[self.row(i) for i in ids],
            pretrained=[self.pretrained_row(c) for c in judged],
            pretrained_note=self.filled(
                common["notes"]["pretrained"], "notes", **pretrained_values
            ),
            figure=experiment.load(self.number).figure(self.result, text["figure"]),
            follow_up=self.filled(text["follow_up"], "follow_up"),
            commands=[
                (self.filled(c["command"], "commands"), self.filled(c["about"], "commands"))
                for c in (*common["commands"], *text["commands"])
            ],
            exercises=[
                (self.filled(e["task"], "exercises"), self.filled(e["answer"], "exercises"))
                for e in text["exercises"]
            ],
            own_run=(
                self.filled(text["own_run"].get("command", ""), "own_run"),
                self.filled(text["own_run"]["about"], "own_run"),
            ),
            limits=limits,
            references=[f"arXiv:{p}" for p in sorted(papers)],
            words={k: self.filled(v, k) for k, v in common["words"].items()},
        )


def make(folder: Path, language: str) -> Page:
    """The page of a question's folder.

    Raises:
        ConfigError, DataError: as for ``experiment.read_result`` and ``pretrained.read``.
    """
    result = experiment.read_result(folder)
    cost, guesses = read_object(folder / experiment.COST), read_object(folder / PREDICTIONS)
    of_pretrained = pretrained.read(folder, result["question"])
    return Writer(result, cost, guesses, language, of_pretrained).page()
