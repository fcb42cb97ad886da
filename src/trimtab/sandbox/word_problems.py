"""Arithmetic word problems in GSM8K's format (2110.14168), with the structure behind each kept.

A solution is steps that end in ``;`` and a last line ``#### N``. Since the truth is known, so is
whether each step is right, and, for people who err with a known probability, what a step did to
the chance of a right answer. ``docs/sandbox.md`` works an example by hand. Everything is
deterministic by (seed, index).
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import numpy as np
from pydantic import Field, model_validator
from transformers import PreTrainedTokenizerFast

from trimtab.config import Config
from trimtab.data import sources
from trimtab.errors import DataError
from trimtab.sandbox.tokenizer import word_level
from trimtab.sandbox.world import NAMES

Operation = Literal["+", "-", "*"]

END = ";"
"""Ends each step and is said nowhere else, so that a step ends at one token."""
TOP = 99
"""The largest number that has a token."""
SLIP = 3
"""A wrong result is at most this far from the right one."""
HELD_OUT = 10_000_000
"""Index of the first held-out problem."""

GOODS = ("coins", "books", "kites", "bells", "ropes", "lamps", "stamps", "shells")
TOLD: dict[Operation, tuple[str, ...]] = {
    "+": ("finds {} more", "buys {} more", "gets {} more"),
    "-": ("loses {} of them", "sells {} of them", "gives away {} of them"),
    "*": ("then has {} times as many",),
}

_STEP = re.compile(r"^\s*<<\s*(\d+)\s*([-+*])\s*(\d+)\s*=\s*(-?\d+)\s*>>\s*;\s*$")
_FINAL = re.compile(r"####\s*\$?\s*(-?[\d,]+(?:\.\d+)?)\s*$")


class Difficulty(Config):
    """How hard problems are."""

    steps: int = Field(default=3, ge=1, le=6)
    """Calculations a problem needs."""
    fewest: int | None = Field(default=None, ge=1, le=6)
    """When given, each problem needs from ``fewest`` to ``steps`` of them, all equally likely."""
    largest: int = Field(default=30, ge=10, le=90)
    """No right result is larger."""
    operand: int = Field(default=9, ge=2, le=90)
    """The largest number added or taken away; factors are 2 and 3."""
    operations: tuple[Operation, ...] = Field(default=("+", "-"), min_length=1)

    @model_validator(mode="after")
    def _sane(self) -> Difficulty:
        if self.fewest is not None and self.fewest > self.steps:
            raise ValueError(f"fewest ({self.fewest}) is more than steps ({self.steps})")
        if not {"+", "-"} & set(self.operations):
            raise ValueError('operations must hold "+" or "-": products alone outgrow every limit')
        return self


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that happens: an operation, its number, and how it is told."""

    operation: Operation
    number: int
    told: int = 0
    """Which of ``TOLD[operation]``."""

    def __call__(self, x: int) -> int:
        """What ``x`` becomes.

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
        """As it is asked.

        >>> Problem("anna", "coins", 5, (Change("+", 3), Change("*", 2))).question
        'anna has 5 coins . anna finds 3 more . anna then has 2 times as many . how many coins does anna have ?'
        """
        told = [f"{self.who} {TOLD[c.operation][c.told].format(c.number)} ." for c in self.changes]
        first = f"{self.who} has {self.start} {self.goods} ."
        return " ".join([first, *told, f"how many {self.goods} does {self.who} have ?"])

    @property
    def results(self) -> tuple[int, ...]:
        """The right result of each step."""
        found = [self.start]
        for change in self.changes:
            found.append(change(found[-1]))
        return tuple(found[1:])

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
        """The solution of someone whose steps have these ``results``, each used by the next."""
        lines: list[str] = []
        x = self.start
        for change, result in zip(self.changes, results, strict=True):
            lines.append(f"<< {x} {change.operation} {change.number} = {result} >> {END}")
            x = result
        return "\n".join([*lines, f"#### {x}"])

    def mistakes(self, done: int, right: int) -> list[int]:
        """The wrong results, all equally likely, that step ``done`` has instead of ``right``: close
        to it, and such that the steps to come stay within the numbers that have tokens."""
        near = [right + d for d in range(-SLIP, SLIP + 1) if d]
        return [x for x in near if self._fits(done + 1, x)]

    def _fits(self, done: int, x: int) -> bool:
        for change in self.changes[done:]:
            if not 0 <= x <= TOP:
                return False
            x = change(x)
        return 0 <= x <= TOP

    def messages(self) -> list[dict[str, str]]:
        """As a conversation."""
        return [{"role": "user", "content": self.question}]

    def to_json(self) -> str:
        """For a column of a data set."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Problem:
        """What ``to_json`` wrote."""
        raw: dict[str, Any] = json.loads(text)
        changes = tuple(Change(**c) for c in raw.pop("changes"))
        return Problem(changes=changes, **raw)


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
    # With one of the two alone, numbers may run out: the other then stands in for it.
    spare: tuple[Operation, ...] = ("+", "-")
    fallback: list[Operation] = [o for o in spare if most[o] >= 1]
    options = possible or fallback
    operation = options[int(rng.integers(len(options)))]
    number = int(rng.integers(least[operation], most[operation] + 1))
    return Change(operation, number, int(rng.integers(len(TOLD[operation]))))


def make_problems(
    difficulty: Difficulty, seed: int, count: int, start: int = 0, seen: Sequence[Problem] = ()
) -> list[Problem]:
    """``count`` problems from index ``start`` on, without those whose question is in ``seen``.

    Raises:
        DataError: so few problems are left that they are not found in 100 tries each.
    """
    known = {p.question for p in seen}
    found: list[Problem] = []
    for index in range(start, start + 100 * count):
        problem = make_problem(difficulty, seed, index)
        if problem.question not in known:
            found.append(problem)
        if len(found) == count:
            return found
    raise DataError(
        f"only {len(found)} of {count} problems differ from those already used; raise "
        "difficulty.largest or difficulty.steps, or ask for fewer"
    )


def demonstrate(problem: Problem, rng: np.random.Generator, wrong: float) -> str:
    """A solution by someone whose every step is wrong with probability ``wrong``."""
    results: list[int] = []
    x = problem.start
    for done, change in enumerate(problem.changes):
        x = change(x)
        slips = problem.mistakes(done, x)
        if slips and rng.random() < wrong:
            x = slips[int(rng.integers(len(slips)))]
        results.append(x)
    return problem.solution(results)


def steps(text: str) -> list[str]:
    """The steps of a solution, each with its end; what follows the last end is none.

    >>> steps("<< 5 + 3 = 8 >> ; << 8 * 2 = 16 >> ; #### 16")
    ['<< 5 + 3 = 8 >> ;', '<< 8 * 2 = 16 >> ;']
    """
    return [f"{piece.strip()} {END}".strip() for piece in text.split(END)[:-1]]


def step_labels(problem: Problem, text: str) -> list[bool]:
    """Whether each step is right: the change whose turn it is, applied to what the step before
    arrived at, and worked out right. A step that goes on soundly from a wrong number is right, so
    that a mistake is blamed once."""
    found: list[bool] = []
    x: int | None = problem.start
    for place, step in enumerate(steps(text)):
        read = _STEP.match(step)
        if read is None or place >= len(problem.changes):
            found.append(False)
            x = None
            continue
        change = problem.changes[place]
        left, operation, right, result = int(read[1]), read[2], int(read[3]), int(read[4])
        found.append(
            left == x
            and operation == change.operation
            and right == change.number
            and result == change(left)
        )
        x = result
    return found


def verify(answer: str | int, text: str) -> bool:
    """Whether a solution ends in ``#### N`` with N the number of ``answer``.

    Args:
        answer: The number, or a solution that ends in one (as in GSM8K's column "answer").
        text: Given once, at the end: more than one ``####``, or words after it, are wrong.

    >>> verify(16, "<< 8 * 2 = 16 >> ; #### 16"), verify("#### 1,200", "#### 1200.0")
    (True, True)
    """
    wanted = final(str(answer)) if "####" in str(answer) else _decimal(str(answer))
    return text.count("####") == 1 and wanted is not None and final(text) == wanted


def final(text: str) -> float | None:
    """The number after ``####`` at the end of ``text``."""
    found = _FINAL.search(text)
    return None if found is None else _decimal(found[1])


def _decimal(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def chance(problem: Problem, results: Sequence[int], wrong: float) -> float:
    """Exact probability that someone who errs with probability ``wrong`` a step, and has arrived at
    ``results`` so far, ends at the right answer (two mistakes may cancel)."""
    known: dict[tuple[int, int], float] = {}

    def ahead(done: int, x: int) -> float:
        if done == len(problem.changes):
            return float(x == problem.number)
        if (done, x) not in known:
            right = problem.changes[done](x)
            slips = problem.mistakes(done, right)
            p = wrong if slips else 0.0
            missed = sum(ahead(done + 1, s) for s in slips) / max(1, len(slips))
            known[done, x] = (1 - p) * ahead(done + 1, right) + p * missed
        return known[done, x]

    if len(results) > len(problem.changes):
        return 0.0
    return ahead(len(results), results[-1] if results else problem.start)


def effects(problem: Problem, text: str, wrong: float) -> list[float]:
    """The true effect of each step: how much it changed the chance of a right answer, for someone
    who goes on as demonstrators do. They sum to the last chance less the first. After a step that
    cannot be read, or one too many, the chance is 0."""
    values = [chance(problem, [], wrong)]
    results: list[int] = []
    readable = True
    for step in steps(text):
        read = _STEP.match(step)
        readable = readable and read is not None
        if read is not None:
            results.append(int(read[4]))
        values.append(chance(problem, results, wrong) if readable else 0.0)
    return [after - before for before, after in itertools.pairwise(values)]


def verifier_reward(
    prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str | int], **_: Any
) -> list[float]:
    """Outcome reward: 1 for a right answer, 0 for any other text."""
    return [float(verify(a, c)) for a, c in zip(answer, completions, strict=True)]


def steps_reward(
    prompts: Sequence[str], completions: Sequence[str], problem: Sequence[str], **_: Any
) -> list[float]:
    """Dense oracle, in [0, 1]: the share of right steps, the answer counted as one more; steps
    missing or too many count as wrong."""
    found: list[float] = []
    for raw, said in zip(problem, completions, strict=True):
        asked = Problem.from_json(raw)
        labels = step_labels(asked, said)
        most = max(len(labels), len(asked.changes)) + 1
        found.append((sum(labels) + verify(asked.number, said)) / most)
    return found


def prompt_row(problem: Problem) -> dict[str, Any]:
    """A prompt-only row; answer and structure travel along, for the rewards."""
    return {
        "prompt": problem.messages(),
        "answer": str(problem.number),
        "problem": problem.to_json(),
    }


def demonstration_row(problem: Problem, seed: int, index: int, wrong: float) -> dict[str, Any]:
    """A row with a demonstrator's solution, deterministic by (seed, index)."""
    said = demonstrate(problem, np.random.default_rng((seed, index, 1)), wrong)
    turn = {"role": "assistant", "content": said}
    return {"messages": [*problem.messages(), turn], "right": verify(problem.number, said)}


def words() -> list[str]:
    """Every word of problems and solutions, in a fixed order."""
    told = [w.replace("{}", "") for ways in TOLD.values() for w in ways]
    texts = [*NAMES, *GOODS, *told, "has how many does have . ?", f"<< >> + - * = #### {END}"]
    numbers = [str(n) for n in range(TOP + 1)]
    return list(dict.fromkeys([*numbers, *(w for text in texts for w in text.split())]))


def tokenizer() -> PreTrainedTokenizerFast:
    """Word-level, with a token for each number from 0 to ``TOP``."""
    return word_level(words())


def read_gsm8k(path: str, limit: int | None = None) -> list[dict[str, Any]]:
    """GSM8K's own rows (columns "question" and "answer") as rows for SFT, RL and ``verify``.

    Returns:
        Rows with ``prompt`` (messages), ``completion`` (the solution) and ``answer`` (the number).

    Raises:
        DataError: the file cannot be read, or a row lacks a column or its ``####`` line.
    """
    made: list[dict[str, Any]] = []
    for number, row in sources.read(path, limit=limit).rows:
        question, solution = row.get("question"), row.get("answer")
        if not isinstance(question, str) or not isinstance(solution, str):
            raise DataError(f"{path}: row {number}: needs texts 'question' and 'answer'")
        found = _FINAL.search(solution)
        if found is None:
            raise DataError(f"{path}: row {number}: 'answer' does not end in a line '#### N'")
        made.append(
            {
                "prompt": [{"role": "user", "content": question}],
                "completion": solution,
                "answer": cast(str, found[1]).replace(",", ""),
            }
        )
    return made
