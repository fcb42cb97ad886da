"""Verifiers: rewards of 0 and 1 from a rule, without a model and without running code."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Literal, cast

import regex
from pydantic import Field, field_validator, model_validator

from trimtab.config import Config, build
from trimtab.data.thoughts import answer_text, names_marker
from trimtab.errors import DataError
from trimtab.rewards.math_answers import MathVerify
from trimtab.types import Group, Score

VerifierName = Literal["exact", "regex", "numeric", "math"]

PATTERN_S = 1.0
"""Seconds per search of a pattern in a completion: some patterns take exponential time."""


def search(pattern: str, text: str) -> regex.Match[str] | None:
    """The last match of ``pattern`` in ``text``, or None.

    Raises:
        TimeoutError: the search took longer than ``PATTERN_S``.
    """
    last = None
    for match in regex.finditer(pattern, text, timeout=PATTERN_S, concurrent=True):
        last = match
    return last


def check_pattern(pattern: str) -> str:
    """``pattern`` itself, if it is a regular expression.

    Raises:
        ValueError: it is not.
    """
    try:
        regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return pattern


class Answer(Config):
    """Where the right answer is, and how the final answer is extracted from a text.

    The thoughts of a completion (``<think>…</think>`` and the like) are not read: an answer that only
    occurs in them is no answer."""

    column: str = "answer"
    """Column with the right answer, or a list of several right answers."""
    extract: str | None = None
    """Pattern whose last match (its first group, if it has groups) is the answer. A completion
    without a match is wrong. By default the answer is the text after the last "####" as in GSM8K,
    else the whole text."""

    @field_validator("extract")
    @classmethod
    def _pattern(cls, value: str | None) -> str | None:
        return None if value is None else check_pattern(value)

    def extract_answer(self, text: str) -> str | None:
        """The answer in a text; None if ``extract`` does not match after the thoughts.

        Raises:
            TimeoutError: the search took longer than ``PATTERN_S``.
        """
        text = answer_text(text)
        if self.extract is None:
            return after_hashes(text)
        match = search(self.extract, text)
        if match is None:
            return None
        return cast("str | None", match.group(1 if regex.compile(self.extract).groups else 0))

    def gold(self, text: str) -> str:
        """The answer in the column, whose text may include the reasoning."""
        extracted = self.extract_answer(text)
        return after_hashes(answer_text(text)) if extracted is None else extracted


class Exact(Answer):
    """Equal texts; any white space counts as one space."""

    ignore_case: bool = False

    def right(self, answer: str, gold: str) -> bool:
        """Whether ``answer`` is ``gold``."""
        a, b = " ".join(answer.split()), " ".join(gold.split())
        return a.casefold() == b.casefold() if self.ignore_case else a == b


class Numeric(Answer):
    """Equal numbers, exactly or within ``tolerance``."""

    tolerance: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """Largest absolute difference between equal numbers."""

    def right(self, answer: str, gold: str) -> bool | None:
        """Whether the last numbers of both are equal; None if ``gold`` has no number."""
        want, have = last_number(gold), last_number(answer)
        if want is None:
            return None
        return have is not None and abs(have - want) <= Fraction(self.tolerance)


class Pattern(Config):
    """A regular expression that the completion must match."""

    pattern: str | None = None
    """Pattern for all rows, in the syntax of the ``regex`` package."""
    column: str | None = None
    """Column with the pattern of each row, instead of ``pattern``."""
    full: bool = False
    """Whether the whole text must match, not only a part of it."""
    after_thoughts: bool | None = None
    """Whether only the text after the thoughts is searched. By default it is, unless the pattern
    contains a marker of thoughts, such as ``<think>``."""

    @model_validator(mode="after")
    def _one(self) -> Pattern:
        if (self.pattern is None) == (self.column is None):
            raise ValueError("give 'pattern', or 'column' for a pattern in each row, not both")
        if self.pattern is not None:
            check_pattern(self.pattern)
        return self

    def right(self, text: str, pattern: str) -> bool:
        """Whether the text, which includes the thoughts, matches."""
        after = self.after_thoughts
        if not names_marker(pattern) if after is None else after:
            text = answer_text(text)
        find = regex.fullmatch if self.full else regex.search
        return find(pattern, text, timeout=PATTERN_S, concurrent=True) is not None


class Maths(Answer):
    """Mathematically equal according to math-verify, in a child process with a deadline."""


_OPTIONS: dict[str, type[Exact | Numeric | Pattern | Maths]] = {
    "exact": Exact,
    "numeric": Numeric,
    "regex": Pattern,
    "math": Maths,
}


def verifier_options(
    verifier: VerifierName, options: dict[str, Any]
) -> Exact | Numeric | Pattern | Maths:
    """The validated keys of a verifier.

    Raises:
        ConfigError: a key is unknown or has a wrong value.
    """
    return build(_OPTIONS[verifier], options, f"options of {verifier!r}")


_NUMBER = re.compile(
    r"(?P<frac>(?<![\w)}])[-+−]?\s*\\[dt]?frac\{(?P<top>[-+]?\d+)\}\{(?P<under>[-+]?\d+)\})"
    r"|(?P<sign>(?<![\w)}])[-+−])?\s*\$?"
    r"(?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?P<point>(?<=\d)\.\d+|\.\d+)?"
    r"(?P<ten>(?<=\d)[eE][-+]?\d{1,3}(?!\d))?"
    r"(?:\s*/\s*(?P<over>\d+))?"
)
_LONGEST = 300


def last_number(text: str) -> Fraction | None:
    """The last number in ``text``, exactly, or None: signs, 1,234.5, 3/4, \\frac{3}{4}, 1e3.

    >>> last_number("She pays $1,234.50."), last_number("so -3/4"), last_number("none")
    (Fraction(2469, 2), Fraction(-3, 4), None)
    """
    number: Fraction | None = None
    for m in _NUMBER.finditer(text.replace("{,}", ",")):
        if m["frac"] is None and m["whole"] is None and m["point"] is None:
            continue
        # int() of thousands of digits is slow, and a policy could learn to write them.
        if len(m[0]) > _LONGEST:
            number = None
            continue
        if m["frac"] is not None:
            minus = m["frac"].lstrip()[0] in "-−"
            top, under = int(m["top"]), int(m["under"])
        else:
            minus = m["sign"] in ("-", "−")
            digits = (m["whole"] or "0").replace(",", "") + (m["point"] or "") + (m["ten"] or "")
            top, under = Fraction(digits), int(m["over"] or 1)
        value = Fraction(top) / under if under else None
        number = -value if minus and value is not None else value
    return number


def after_hashes(text: str) -> str:
    """The rest of the line after the last "####"; the whole text if there is none.

    >>> after_hashes("6 times 7 is 42\\n#### 42")
    '42'
    """
    _, marked, tail = text.rpartition("####")
    return (tail.strip().splitlines() or [""])[0].strip() if marked else text


class VerifierPart:
    """A verifier as a part of the reward: 1 for a right completion, 0 for a wrong one.

    A completion without an answer is wrong: 0. A row without a right answer is "masked": it is for
    other parts of the reward. If the right answer cannot be parsed, the score is "invalid".
    """

    def __init__(
        self, name: str, verifier: VerifierName, options: dict[str, Any], timeout: float | None
    ) -> None:
        self.name = name
        self.columns: set[str] = set()
        """Columns of the whole dataset, where they are known: one batch may have rows without some."""
        self.rule = verifier_options(verifier, options)
        self.check: Callable[[str, str], bool | Score | None]
        if isinstance(self.rule, Maths):
            self.check = MathVerify(name, timeout or 5.0).check
        else:
            self.check = self.rule.right

    def __call__(self, groups: Sequence[Group]) -> dict[str, list[Score]]:
        """A score for each completion, in order.

        Raises:
            DataError: no row has the column of the right answer.
        """
        column = self.rule.column
        columns = self.columns.union(*(g.extra for g in groups))
        if column is not None and groups and column not in columns:
            have = ", ".join(sorted(columns)) or "none"
            raise DataError(
                f"reward {self.name!r} needs the right answer in column {column!r}, but the rows' "
                f"columns besides the prompt are: {have}; set options.column to the right one"
            )
        return {
            self.name: [self._score(g, g.prefill + c.text) for g in groups for c in g.completions]
        }

    def _golds(self, group: Group) -> list[str] | None:
        if self.rule.column is None:
            assert isinstance(self.rule, Pattern) and self.rule.pattern is not None
            return [self.rule.pattern]
        value: Any = group.extra.get(self.rule.column)
        golds = cast("list[Any]", value) if isinstance(value, list) else [value]
        if not golds or not all(type(x) in (str, int, float) and str(x).strip() for x in golds):
            return None
        return [str(x) for x in golds]

    def _score(self, group: Group, text: str) -> Score:
        column = self.rule.column
        if column is not None and group.extra.get(column) in (None, "", []):
            return Score(None, "masked", f"row {group.id}: no right answer in {column!r}")
        golds = self._golds(group)
        if golds is None:
            value = group.extra.get(cast(str, self.rule.column))
            return _invalid(group, f"{self.rule.column!r} holds {value!r:.100}")
        try:
            if isinstance(self.rule, Pattern):
                answer: str | None = text
            else:
                golds = [self.rule.gold(x) for x in golds]
                answer = self.rule.extract_answer(text)
            if answer is None:
                return Score(0.0)
            for gold in golds:
                result = self.check(answer, gold)
                if result is None:
                    return _invalid(group, f"no answer can be read in {gold!r:.100}")
                if isinstance(result, Score):
                    if result.value != 0.0:
                        return result
                elif result:
                    return Score(1.0)
        except TimeoutError:
            return Score(None, "timeout", f"the pattern ran longer than {PATTERN_S:g} s")
        except regex.error as error:
            return _invalid(group, f"{golds[0]!r:.100} is not a regular expression: {error}")
        return Score(0.0)


def _invalid(group: Group, why: str) -> Score:
    return Score(None, "invalid", f"row {group.id}: {why}")
