"""What sways an annotator, person or judge, beside quality: position, length, flattery, format.

With gold scores, or another measure of quality, the biases are absolute. Without, they are against
the other annotators on the same pairs, and what all share cannot be seen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.feedback.judgement import Item
from trimtab.feedback.records import Records
from trimtab.feedback.votes import FIRST, TIE, Pair, Vote
from trimtab.stats.logistic import ScoreTest, logistic
from trimtab.stats.uncertainty import wilson

Floats = npt.NDArray[np.float64]

FLATTERY = (
    r"\byou(?:'re| are)(?: so| very| absolutely| completely| quite| totally)? (?:right|correct)\b",
    r"\b(?:great|excellent|wonderful|fantastic|brilliant|insightful) (?:question|point|idea|choice)\b",
    r"\bi (?:completely |totally |fully )?agree with you\b",
    r"\bas you (?:rightly|correctly|wisely) (?:say|said|note|noted|point(?:ed)? out)\b",
    r"\bwhat an? (?:great|excellent|wonderful|insightful|thoughtful)\b",
)
"""Phrases that please the reader rather than answer."""
FORMAT = (
    r"^\s{0,3}#{1,6}\s", r"^\s*(?:[-*+]|\d+[.)])\s+\S", r"\*\*[^*\n]+\*\*", r"^\s*```", r"^\s*\|.*\|\s*$",
    r"^(?:well|of course|sure|certainly|good question|let me see|as you said)\b",
    r"\bthank you for (?:this|that|asking|your)\b",
    r"\b(?:i hope (?:this|that) helps|have a (?:nice|great|good) day|let me know if|please ask me)\b",
    r"\bthat is all for now\b",
)  # fmt: skip
"""Markup and stock openings and closings."""
PATTERNS: dict[str, tuple[str, ...]] = {"flattery": FLATTERY, "format": FORMAT}
MIN_ROWS = 20
"""Fewer judgements than this a bias is not sought in."""
FAMILY = 0.01
"""Share of panels without any bias in which one is reported all the same."""


def features(item: Item, patterns: Mapping[str, Sequence[str]]) -> Floats:
    """[K, 1 + patterns]: words of each answer, then whether it holds any of the patterns."""
    found = [
        [
            float(len(text.split())),
            *(
                float(any(re.search(p, text, re.I | re.M) for p in some))
                for some in patterns.values()
            ),
        ]
        for text in item.completions
    ]
    return np.array(found)


def shapes(records: Records, patterns: Mapping[str, Sequence[str]]) -> dict[str, Floats]:
    """``features`` of every item, by its id."""
    return {i: features(item, patterns) for i, item in records.items.items()}


def _named(model: str | None, annotator: str) -> bool:
    """Whether a model's name stands whole in an annotator's ("m-7b" in "m-7b/hhh")."""
    if model is None:
        return False
    return bool(re.search(rf"(?<![a-z0-9]){re.escape(model)}(?![a-z0-9])", annotator, re.I))


def _own(vote: Vote, item: Item) -> float:
    """1 or -1: which of the two answers is by the judge's own model; 0 where neither is."""
    _, a, b = vote.pair
    if vote.judgement.who != "ai" or item.models is None:
        return 0.0
    return float(_named(item.models[a], vote.annotator)) - float(
        _named(item.models[b], vote.annotator)
    )


def biases(
    records: Records,
    cast: Sequence[Vote],
    gold: Mapping[Pair, float],
    patterns: Mapping[str, Sequence[str]] = PATTERNS,
    confidence: float = 0.95,
) -> dict[str, dict[str, dict[str, Any]]]:
    """annotator -> bias -> figures.

    ``coef`` is in nats of log-odds: of the answer shown first ("position"), of a standard
    deviation of the difference in words ("length", whose ``words`` it is), of holding the phrases
    or the markup ("flattery", "format"), of the annotator's own model ("self"). ``low`` and
    ``high`` are its 95 % interval (score test); ``found`` says that it would exclude 0 also when corrected for
    everything tested here (Bonferroni, ``FAMILY``). ``control`` is "gold" or "others".
    """
    shape = shapes(records, patterns)
    by_name: dict[str, list[Vote]] = {}
    for v in cast:
        if v.judgement.who != "gold" and v.judgement.kind != "repeat":
            by_name.setdefault(v.annotator, []).append(v)
    by_unit: dict[Pair, list[Vote]] = {}
    for mine in by_name.values():
        for v in mine:
            by_unit.setdefault(v.pair, []).append(v)
    names = ("position", "length", *patterns, "self")
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for who, mine in by_name.items():
        controlled = [v for v in mine if v.pair in gold]
        if len(controlled) >= max(MIN_ROWS, len(mine) // 2):
            x, y, owner = _against_gold(records, controlled, shape, gold)
            control = "gold"
        else:
            x, y, owner = _against_others(records, mine, by_unit, shape)
            control = "others"
        if len(y) < MIN_ROWS:
            continue
        spread = float(x[:, 1].std()) or 1.0
        x[:, 1] /= spread
        # What hardly varies cannot be told; a coefficient of it would be noise.
        used = [0, *(i for i in range(1, x.shape[1]) if (x[:, i] != 0).sum() >= MIN_ROWS / 2)]
        if np.ptp(y) == 0:
            continue
        coef = logistic(x[:, used], y, ridge=0.01).coef_P
        told: dict[str, dict[str, Any]] = {}
        for place, column in enumerate(used):
            if column < len(names):
                test = ScoreTest(x[:, used], y, place, owner)
                p, value = test.p_value(), float(coef[place])
                low, high = test.interval(value, confidence)
                told[names[column]] = {
                    "coef": value, "low": low, "high": high, "p": p, "control": control, "n": len(y)
                }  # fmt: skip
        if "length" in told:
            told["length"]["words"] = spread
        found[who] = told
    tests = max(1, sum(len(told) for told in found.values()))
    for told in found.values():
        for bias in told.values():
            bias["found"] = bias["p"] < FAMILY / tests
    return found


def _against_gold(
    records: Records, mine: Sequence[Vote], shape: Mapping[str, Floats], gold: Mapping[Pair, float]
) -> tuple[Floats, Floats, list[str]]:
    """Rows (answer shown first minus the other): 1, words, patterns…, own, quality."""
    x: list[list[float]] = []
    y: list[float] = []
    for v in mine:
        item, a, b = v.pair
        sign = 1.0 if v.a_shown_first else -1.0
        gap = sign * (shape[item][a] - shape[item][b])
        x.append([1.0, *gap, sign * _own(v, records.items[item]), sign * gold[v.pair]])
        y.append(0.5 if v.choice == TIE else float((v.choice == FIRST) == v.a_shown_first))
    return np.array(x), np.array(y), [v.pair[0] for v in mine]


def _against_others(
    records: Records,
    mine: Sequence[Vote],
    by_unit: Mapping[Pair, Sequence[Vote]],
    shape: Mapping[str, Floats],
) -> tuple[Floats, Floats, list[str]]:
    """Conditional logistic regression: of two annotators who disagree on a pair, which one chose
    a? What they both see in the pair drops out (Rasch 1960), so no measure of it is needed.

    People are held against people where there are any, and judges against people.
    """
    x: list[list[float]] = []
    y: list[float] = []
    owner: list[str] = []
    people = any(v.judgement.who != "ai" for vs in by_unit.values() for v in vs)
    for v in mine:
        item, a, b = v.pair
        for other in by_unit[v.pair]:
            if other.annotator == v.annotator or (people and other.judgement.who == "ai"):
                continue
            if TIE in (v.choice, other.choice) or v.choice == other.choice:
                continue
            gap = shape[item][a] - shape[item][b]
            led = 1.0 if v.a_shown_first else -1.0
            # A measure of both positions: mine counts for me, the other's against.
            x.append(
                [led, *gap, _own(v, records.items[item]), -1.0 if other.a_shown_first else 1.0]
            )
            y.append(float(v.choice == FIRST))
            owner.append(item)
    return np.array(x).reshape(-1, 3 + next(iter(shape.values())).shape[1]), np.array(y), owner


def rates(
    records: Records, mine: Sequence[Vote], shape: Mapping[str, Floats], names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """How often, quality aside, the first, the longer, the flattering one wins; ties a half, with
    Wilson's interval. What is seen, not what causes it."""
    wins: dict[str, list[float]] = {}
    for v in mine:
        item, a, b = v.pair
        score = {FIRST: 1.0, TIE: 0.5}.get(v.choice, 0.0)
        gap = shape[item]
        sides = {"position": 1.0 if v.a_shown_first else -1.0}
        sides |= dict(zip(("length", *names), gap[a] - gap[b], strict=True))
        sides["self"] = _own(v, records.items[item])
        for name, side in sides.items():
            if side:
                wins.setdefault(name, []).append(score if side > 0 else 1 - score)
    out: dict[str, dict[str, float]] = {}
    for name, won in wins.items():
        low, high = wilson(sum(won), len(won))
        out[name] = {"rate": sum(won) / len(won), "low": low, "high": high, "n": float(len(won))}
    return out
