"""Biases of annotators at equal quality: position, length, flattery, format, own model.

With gold scores, or another measure of quality, the biases are absolute. Without, they are relative
to the other annotators on the same pairs, so that a bias shared by all is invisible.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import regex

from trimtab.errors import DataError
from trimtab.evaluate.agreement_result import Bias, Share
from trimtab.feedback.features import is_found
from trimtab.feedback.judgement import Item
from trimtab.feedback.records import Records
from trimtab.feedback.votes import FIRST, TIE, Pair, Vote
from trimtab.stats.logistic import ScoreTest, logistic

Floats = npt.NDArray[np.float64]

FLATTERY = (
    r"\byou(?:'re| are)(?: so| very| absolutely| completely| quite| totally)? (?:right|correct)\b",
    r"\b(?:great|excellent|wonderful|fantastic|brilliant|insightful) (?:question|point|idea|choice)\b",
    r"\bi (?:completely |totally |fully )?agree with you\b",
    r"\bas you (?:rightly|correctly|wisely) (?:say|said|note|noted|point(?:ed)? out)\b",
    r"\bwhat an? (?:great|excellent|wonderful|insightful|thoughtful)\b",
)
"""Phrases that please the reader instead of answering."""
FORMAT = (
    r"^\s{0,3}#{1,6}\s",
    r"^[^\S\n]*(?:[-*+]|\d+[.)])\s+\S",
    r"\*\*[^*\n]+\*\*",
    r"^[^\S\n]*```",
    r"^[^\S\n]*\|.*\|[^\S\n]*$",
    r"^(?:well|of course|sure|certainly|good question|let me see|as you said)\b",
    r"\bthank you for (?:this|that|asking|your)\b",
    r"\b(?:i hope (?:this|that) helps|have a (?:nice|great|good) day|let me know if|please ask me)\b",
    r"\bthat is all for now\b",
)
"""Markup and stock openings and closings."""
PATTERNS: dict[str, tuple[str, ...]] = {"flattery": FLATTERY, "format": FORMAT}
MIN_ROWS = 20
"""No bias is tested with fewer judgements than this."""
FAMILY = 0.01
"""Probability that a panel without any bias has a significant one."""


def features(item: Item, patterns: Mapping[str, Sequence[str]]) -> Floats:
    """[K, 1 + patterns]: words of each completion, then 1 or 0 for whether each pattern matches.

    Raises:
        DataError: the search of a pattern takes too long.
    """

    def has(name: str, text: str) -> float:
        try:
            return float(any(is_found(p, text, regex.I | regex.M) for p in patterns[name]))
        except TimeoutError as error:
            raise DataError(
                f"patterns.{name}: a search takes too long ({error}); some patterns take exponential time, "
                "as one with a repeated group that repeats itself, so write a simpler one"
            ) from None

    return np.array(
        [[float(len(t.split())), *(has(name, t) for name in patterns)] for t in item.completions]
    )


def shapes(records: Records, patterns: Mapping[str, Sequence[str]]) -> dict[str, Floats]:
    """``features`` of every item, by its id."""
    return {i: features(item, patterns) for i, item in records.items.items()}


def _names_model(annotator: str, model: str | None) -> bool:
    """Whether an annotator's name contains a model's as a whole word ("m-7b" in "m-7b/hhh")."""
    if model is None:
        return False
    return bool(re.search(rf"(?<![a-z0-9]){re.escape(model)}(?![a-z0-9])", annotator, re.I))


def _own(vote: Vote, item: Item) -> float:
    """1 or -1 where completion a or b is by the judge's own model; 0 for neither or both."""
    _, a, b = vote.pair
    if vote.judgement.who != "ai" or item.models is None:
        return 0.0
    own_a, own_b = (_names_model(vote.annotator, item.models[k]) for k in (a, b))
    return float(own_a) - float(own_b)


def biases(
    records: Records,
    cast: Sequence[Vote],
    gold: Mapping[Pair, float],
    patterns: Mapping[str, Sequence[str]] = PATTERNS,
    confidence: float = 0.95,
) -> dict[str, dict[str, Bias]]:
    """Test every annotator for every bias.

    Returns:
        annotator -> bias -> result. Coefficients are nats of log-odds: for the completion shown
        first ("position"), per standard deviation of the difference in words ("length"), for the
        phrases or markup of ``patterns``, for the annotator's own model ("self"). Intervals are of
        the score test; ``significant`` is corrected for all tests here (Bonferroni, ``FAMILY``).
    """
    shape = shapes(records, patterns)
    by_name: dict[str, list[Vote]] = defaultdict(list)
    by_pair: dict[Pair, list[Vote]] = defaultdict(list)
    for v in cast:
        if v.judgement.who != "gold" and v.judgement.kind != "repeat":
            by_name[v.annotator].append(v)
    for own_votes in by_name.values():
        for v in own_votes:
            by_pair[v.pair].append(v)
    names = ("position", "length", *patterns, "self")
    results: dict[str, dict[str, Bias]] = {}
    for who, own_votes in by_name.items():
        control: Literal["gold", "others"] = "others"
        with_gold = [v for v in own_votes if v.pair in gold]
        if len(with_gold) >= max(MIN_ROWS, len(own_votes) // 2):
            control = "gold"
            x, y, owner = _against_gold(records, with_gold, shape, gold)
        else:
            x, y, owner = _against_others(records, own_votes, by_pair, shape)
        if len(y) < MIN_ROWS or np.ptp(y) == 0:
            continue
        std_words = float(x[:, 1].std()) or 1.0
        x[:, 1] /= std_words
        # The coefficient of a column that hardly varies would be noise.
        used = [0, *(i for i in range(1, x.shape[1]) if (x[:, i] != 0).sum() >= MIN_ROWS / 2)]
        coef = logistic(x[:, used], y, ridge=0.01).coef_P
        results[who] = {}
        for place, column in enumerate(used):
            if column < len(names):
                name = names[column]
                test = ScoreTest(x[:, used], y, place, owner)
                p, value = test.p_value(), float(coef[place])
                low, high = test.interval(value, confidence)
                words = std_words if name == "length" else None
                results[who][name] = Bias(value, low, high, p, control, len(y), words)
    tests = max(1, sum(len(tested) for tested in results.values()))
    return {
        who: {name: replace(b, significant=b.p < FAMILY / tests) for name, b in tested.items()}
        for who, tested in results.items()
    }


def _against_gold(
    records: Records,
    own_votes: Sequence[Vote],
    shape: Mapping[str, Floats],
    gold: Mapping[Pair, float],
) -> tuple[Floats, Floats, list[str]]:
    """Columns (completion shown first minus the other): 1, words, patterns, own model, quality.

    Returns:
        x [N, P], y [N], item of each row.
    """
    x: list[list[float]] = []
    y: list[float] = []
    for v in own_votes:
        item, a, b = v.pair
        sign = 1.0 if v.a_shown_first else -1.0
        gap = sign * (shape[item][a] - shape[item][b])
        x.append([1.0, *gap, sign * _own(v, records.items[item]), sign * gold[v.pair]])
        y.append(0.5 if v.choice == TIE else float((v.choice == FIRST) == v.a_shown_first))
    return np.array(x), np.array(y), [v.pair[0] for v in own_votes]


def _against_others(
    records: Records,
    own_votes: Sequence[Vote],
    by_pair: Mapping[Pair, Sequence[Vote]],
    shape: Mapping[str, Floats],
) -> tuple[Floats, Floats, list[str]]:
    """Conditional logistic regression: which of two annotators who disagree on a pair chose a?

    Whatever both see in the pair cancels (Rasch 1960), so no measure of quality is needed. Everyone
    is compared with people where there are any.

    Returns:
        x [N, P], y [N], item of each row.
    """
    x: list[list[float]] = []
    y: list[float] = []
    owner: list[str] = []
    people = any(v.judgement.who != "ai" for vs in by_pair.values() for v in vs)
    for v in own_votes:
        item, a, b = v.pair
        for other in by_pair[v.pair]:
            if other.annotator == v.annotator or (people and other.judgement.who == "ai"):
                continue
            if TIE in (v.choice, other.choice) or v.choice == other.choice:
                continue
            gap = shape[item][a] - shape[item][b]
            # The order that each annotator saw: the other's position counts against it.
            own_order, other_order = (1.0 if w.a_shown_first else -1.0 for w in (v, other))
            x.append([own_order, *gap, _own(v, records.items[item]), -other_order])
            y.append(float(v.choice == FIRST))
            owner.append(item)
    return np.array(x).reshape(-1, 3 + next(iter(shape.values())).shape[1]), np.array(y), owner


def rates(
    records: Records, own_votes: Sequence[Vote], shape: Mapping[str, Floats], names: Sequence[str]
) -> dict[str, Share]:
    """How often the first, the longer, the flattering completion wins, quality not controlled.

    Ties count half; the interval is Wilson's.
    """
    wins: dict[str, list[float]] = defaultdict(list)
    for v in own_votes:
        item, a, b = v.pair
        score = 1.0 - v.choice / 2
        sides = {"position": 1.0 if v.a_shown_first else -1.0}
        sides |= dict(zip(("length", *names), shape[item][a] - shape[item][b], strict=True))
        sides["self"] = _own(v, records.items[item])
        for name, side in sides.items():
            if side:
                wins[name].append(score if side > 0 else 1 - score)
    shares = {name: Share.of(scores) for name, scores in wins.items()}
    return {name: share for name, share in shares.items() if share}
