"""Arithmetic word problems with the structure behind each, by (seed, index).

``word_problems.py`` writes, checks and scores their solutions.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from trimtab.config import Config
from trimtab.errors import DataError
from trimtab.sandbox.world import NAMES

Operation = Literal["+", "-", "*"]

END = ";"
"""Ends each step and occurs nowhere else, so that a step ends at one token."""
TOP = 99
"""The largest number that has a token."""
MAX_ERROR = 3
"""A wrong result differs from the right one by at most this."""

GOODS = ("coins", "books", "kites", "bells", "ropes", "lamps", "stamps", "shells")
PHRASES: dict[Operation, tuple[str, ...]] = {
    "+": ("finds {} more", "buys {} more", "gets {} more"),
    "-": ("loses {} of them", "sells {} of them", "gives away {} of them"),
    "*": ("then has {} times as many",),
}


class Difficulty(Config):
    """How hard problems are."""

    steps: int = Field(default=3, ge=1, le=6)
    """Calculations per problem."""
    fewest: int | None = Field(default=None, ge=1, le=6)
    """If set, the number of calculations is uniform from ``fewest`` to ``steps``."""
    largest: int = Field(default=30, ge=10, le=90)
    """Upper bound on every right result."""
    operand: int = Field(default=9, ge=2, le=90)
    """The largest number added or subtracted; factors are 2 and 3."""
    operations: tuple[Operation, ...] = Field(default=("+", "-"), min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Difficulty:
        if self.fewest is not None and self.fewest > self.steps:
            raise ValueError(f"fewest ({self.fewest}) is more than steps ({self.steps})")
        if not {"+", "-"} & set(self.operations):
            raise ValueError(
                'operations must contain "+" or "-": products alone exceed every limit'
            )
        return self


@dataclass(frozen=True, slots=True)
class Change:
    """One event of the story: an operation, its number, and its wording."""

    operation: Operation
    number: int
    phrase: int = 0
    """Index into ``PHRASES[operation]``."""

    def __call__(self, x: int) -> int:
        """Apply the operation to ``x``.

        >>> Change("-", 4)(10)
        6
        """
        if self.operation == "*":
            return x * self.number
        return x + self.number if self.operation == "+" else x - self.number


@dataclass(frozen=True, slots=True)
class Problem:
    """A word problem with the structure behind it."""

    who: str
    goods: str
    start: int
    changes: tuple[Change, ...]

    @property
    def question(self) -> str:
        """The text of the problem.

        >>> Problem("anna", "coins", 5, (Change("+", 3), Change("*", 2))).question
        'anna has 5 coins . anna finds 3 more . anna then has 2 times as many . how many coins does anna have ?'
        """
        events = [
            f"{self.who} {PHRASES[c.operation][c.phrase].format(c.number)} ." for c in self.changes
        ]
        first = f"{self.who} has {self.start} {self.goods} ."
        return " ".join([first, *events, f"how many {self.goods} does {self.who} have ?"])

    @property
    def results(self) -> tuple[int, ...]:
        """The right result of each step."""
        return tuple(
            itertools.accumulate(self.changes, lambda x, change: change(x), initial=self.start)
        )[1:]

    @property
    def number(self) -> int:
        """The right answer."""
        return self.results[-1]

    @property
    def answer(self) -> str:
        """The right solution.

        >>> Problem("anna", "coins", 5, (Change("+", 3), Change("*", 2))).answer
        '<< 5 + 3 = 8 >> ;\\n<< 8 * 2 = 16 >> ;\\n#### 16'
        """
        return self.solution(self.results)

    def solution(self, results: Sequence[int]) -> str:
        """The solution whose steps have these ``results``, each used by the next step."""
        lines: list[str] = []
        x = self.start
        for change, result in zip(self.changes, results, strict=True):
            lines.append(f"<< {x} {change.operation} {change.number} = {result} >> {END}")
            x = result
        return "\n".join([*lines, f"#### {x}"])

    def mistakes(self, done: int, right: int) -> list[int]:
        """Wrong results of step ``done`` in place of ``right``, all equally likely.

        They are close to it, and keep the remaining steps within the numbers that have tokens.
        """
        near = [right + d for d in range(-MAX_ERROR, MAX_ERROR + 1) if d]
        return [x for x in near if self._fits(done + 1, x)]

    def _fits(self, done: int, x: int) -> bool:
        for change in self.changes[done:]:
            if not 0 <= x <= TOP:
                return False
            x = change(x)
        return 0 <= x <= TOP

    def messages(self) -> list[dict[str, str]]:
        """The prompt as one user turn."""
        return [{"role": "user", "content": self.question}]

    def to_json(self) -> str:
        """The value of a dataset column; ``phrase`` is called "told" there."""
        row = asdict(self)
        for change in row["changes"]:
            change["told"] = change.pop("phrase")
        return json.dumps(row)

    @staticmethod
    def from_json(text: str) -> Problem:
        """Inverse of ``to_json``."""
        row: dict[str, Any] = json.loads(text)
        changes = tuple(Change(c["operation"], c["number"], c["told"]) for c in row.pop("changes"))
        return Problem(changes=changes, **row)


def make_problem(difficulty: Difficulty, seed: int, index: int) -> Problem:
    """Problem ``index`` of ``seed``."""
    rng = np.random.default_rng((seed, index))
    d = difficulty
    count = d.steps if d.fewest is None else int(rng.integers(d.fewest, d.steps + 1))
    who, goods = NAMES[int(rng.integers(len(NAMES)))], GOODS[int(rng.integers(len(GOODS)))]
    start = x = int(rng.integers(2, d.largest + 1))
    changes: list[Change] = []
    for _ in range(count):
        change = _change(d, x, rng)
        changes.append(change)
        x = change(x)
    return Problem(who, goods, start, tuple(changes))


def _change(d: Difficulty, x: int, rng: np.random.Generator) -> Change:
    """A change whose result stays in [1, largest]."""
    most: dict[Operation, int] = {
        "+": min(d.operand, d.largest - x),
        "-": min(d.operand, x - 1),
        "*": min(3, d.largest // x),
    }
    least: dict[Operation, int] = {"+": 1, "-": 1, "*": 2}
    possible: list[Operation] = [o for o in d.operations if most[o] >= least[o]]
    # With only one of "+" and "-" no number may be left; then the other one is used.
    fallback: list[Operation] = [o for o in ("+", "-") if most[o] >= 1]
    options = possible or fallback
    operation = options[int(rng.integers(len(options)))]
    number = int(rng.integers(least[operation], most[operation] + 1))
    return Change(operation, number, int(rng.integers(len(PHRASES[operation]))))


def make_problems(
    difficulty: Difficulty, seed: int, count: int, start: int = 0, seen: Sequence[Problem] = ()
) -> list[Problem]:
    """``count`` problems from index ``start`` on, without those whose question is in ``seen``.

    Raises:
        DataError: fewer than ``count`` new problems in 100 * ``count`` draws.
    """
    seen_questions = {p.question for p in seen}
    problems: list[Problem] = []
    for index in range(start, start + 100 * count):
        problem = make_problem(difficulty, seed, index)
        if problem.question not in seen_questions:
            problems.append(problem)
        if len(problems) == count:
            return problems
    raise DataError(
        f"only {len(problems)} of {count} problems differ from those already used; raise "
        "difficulty.largest or difficulty.steps, or ask for fewer"
    )
