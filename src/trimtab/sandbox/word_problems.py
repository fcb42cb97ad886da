"""Solutions of word problems in GSM8K's format (2110.14168): written, checked and scored.

A solution is steps that end in ``;`` and a last line ``#### N``. The structure behind a problem
says whether each step is right and, for a writer who errs with a known probability, how a step
changed the probability of a right final answer. ``docs/sandbox.md`` works an example by hand.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from trimtab.data import sources
from trimtab.errors import DataError
from trimtab.sandbox.arithmetic import END, GOODS, PHRASES, TOP, Problem
from trimtab.sandbox.tokenizer import word_level
from trimtab.sandbox.world import NAMES
from trimtab.types import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

HELD_OUT = 10_000_000
"""Index of the first held-out problem."""

_STEP = re.compile(r"^\s*<<\s*(\d+)\s*([-+*])\s*(\d+)\s*=\s*(-?\d+)\s*>>\s*;\s*$")
_BEGUN = re.compile(r"^\s*<<\s*\d+\s*[-+*]\s*\d+\s*=\s*(-?\d+)")
_NUMBER = re.compile(r"-?[\d,]+(?:\.\d+)?")


def demonstrate(problem: Problem, rng: np.random.Generator, wrong: float) -> str:
    """A solution in which each step is wrong with probability ``wrong``."""
    results: list[int] = []
    x = problem.start
    for done, change in enumerate(problem.changes):
        x = change(x)
        errors = problem.mistakes(done, x)
        if errors and rng.random() < wrong:
            x = errors[int(rng.integers(len(errors)))]
        results.append(x)
    return problem.solution(results)


def steps(text: str) -> list[str]:
    """The steps of a solution, each with its end; text after the last end is not a step.

    >>> steps("<< 5 + 3 = 8 >> ; << 8 * 2 = 16 >> ; #### 16")
    ['<< 5 + 3 = 8 >> ;', '<< 8 * 2 = 16 >> ;']
    """
    return [f"{piece.strip()} {END}".strip() for piece in text.split(END)[:-1]]


def step_labels(problem: Problem, text: str) -> list[bool]:
    """Whether each step applies the next change to the result of the step before, correctly.

    A step that continues correctly from a wrong number is right, so an error is counted once.
    """
    labels: list[bool] = []
    x: int | None = problem.start
    for i, step in enumerate(steps(text)):
        match = _STEP.match(step)
        if match is None or i >= len(problem.changes):
            labels.append(False)
            x = None
            continue
        change = problem.changes[i]
        left, operation, right, result = int(match[1]), match[2], int(match[3]), int(match[4])
        labels.append(
            left == x
            and operation == change.operation
            and right == change.number
            and result == change(left)
        )
        x = result
    return labels


def readable_steps(text: str) -> int:
    """How many steps, from the first, are calculations, whether right or wrong.

    >>> readable_steps("<< 5 + 3 = 9 >> ; << 9 of 2 >> ; << 9 + 1 = 10 >> ;")
    1
    """
    return sum(1 for _ in itertools.takewhile(_STEP.match, steps(text)))


def verify(answer: str | int, text: str) -> bool:
    """Whether a solution ends in ``#### N`` with N the number of ``answer``.

    Args:
        answer: The number, or a solution that ends in one (as in GSM8K's column "answer").
        text: A solution; it is wrong if it has more than one ``####``, or words after it.

    >>> verify(16, "<< 8 * 2 = 16 >> ; #### 16"), verify("#### 1,200", "#### 1200.0")
    (True, True)
    """
    gold = final(str(answer)) if "####" in str(answer) else _decimal(str(answer))
    return text.count("####") == 1 and gold is not None and final(text) == gold


def final(text: str) -> float | None:
    """The number after ``####`` at the end of ``text``."""
    number = _final(text)
    return None if number is None else _decimal(number)


def _final(text: str) -> str | None:
    """The text of the number after the last ``####``, where nothing else follows."""
    _, marked, tail = text.rpartition("####")
    number = tail.strip().removeprefix("$").strip()
    return number if marked and _NUMBER.fullmatch(number) else None


def _decimal(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def success_probability(problem: Problem, results: Sequence[int], wrong: float) -> float:
    """Exact probability of a right final answer after steps with these ``results``, for a writer
    whose remaining steps are each wrong with probability ``wrong`` (two errors may cancel)."""

    @cache
    def probability(done: int, x: int) -> float:
        if done == len(problem.changes):
            return float(x == problem.number)
        right = problem.changes[done](x)
        errors = problem.mistakes(done, right)
        p = wrong if errors else 0.0
        after_error = sum(probability(done + 1, e) for e in errors) / max(1, len(errors))
        return (1 - p) * probability(done + 1, right) + p * after_error

    if len(results) > len(problem.changes):
        return 0.0
    return probability(len(results), results[-1] if results else problem.start)


def step_effects(problem: Problem, text: str, wrong: float) -> list[float]:
    """Exact advantage of each step: the change of ``success_probability``.

    They sum to the last probability minus the first. After a step that cannot be parsed, or one
    step too many, the probability is 0.
    """
    values = [success_probability(problem, [], wrong)]
    results: list[int] = []
    parsed = True
    for step in steps(text):
        match = _STEP.match(step)
        parsed = parsed and match is not None
        if match is not None:
            results.append(int(match[4]))
        values.append(success_probability(problem, results, wrong) if parsed else 0.0)
    return [after - before for before, after in itertools.pairwise(values)]


def prefix_value(problem: Problem, text: str, wrong: float) -> float:
    """Exact probability of a right final answer after the beginning ``text`` of a solution.

    A step counts from the token of its result on, and its end may no longer be wrong; the number after
    ``####`` decides.

    >>> from trimtab.sandbox.arithmetic import Change
    >>> short = Problem("anna", "coins", 5, (Change("+", 3),))
    >>> [prefix_value(short, x, 0.25) for x in ("<< 5 + 3 =", "<< 5 + 3 = 8", "<< 5 + 3 = 9 >> ;")]
    [0.75, 1.0, 0.0]
    """
    if final(text) is not None:
        return float(verify(problem.number, text))
    results: list[int] = []
    *closed, begun = text.split(END)
    for step in closed:
        match = _STEP.match(f"{step} {END}")
        if match is None:
            return 0.0
        results.append(int(match[4]))
    match = _BEGUN.match(begun)
    if match is not None:
        results.append(int(match[1]))
    return success_probability(problem, results, wrong)


def step_values(
    prompts: Sequence[str],
    completions_steps: Sequence[Sequence[str]],
    problem: Sequence[str],
    wrong: float,
    joint: str = f" {END} ",
) -> list[list[float]]:
    """Process reward: ``prefix_value`` after every step; the last "step" is the answer, right or not.

    Args:
        wrong: How often the writer of the remaining steps errs.
        joint: What stands between two pieces; " " where they are tokens (``unit: token``).
    """
    rows: list[list[float]] = []
    for raw, pieces in zip(problem, completions_steps, strict=True):
        parsed = Problem.from_json(raw)
        texts = list(itertools.accumulate(pieces, lambda text, piece: f"{text}{joint}{piece}"))
        values = [prefix_value(parsed, text + joint, wrong) for text in texts[:-1]]
        rows.append([*values, float(verify(parsed.number, texts[-1]))])
    return rows


def verifier_reward(
    prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str | int], **_: Any
) -> list[float]:
    """Outcome reward: 1 for a right answer, 0 for any other text."""
    return [float(verify(a, c)) for a, c in zip(answer, completions, strict=True)]


def steps_reward(
    prompts: Sequence[str], completions: Sequence[str], problem: Sequence[str], **_: Any
) -> list[float]:
    """Dense ground-truth reward in [0, 1]: the share of right steps, where the final answer counts
    as one more step, and missing or superfluous steps count as wrong."""
    rewards: list[float] = []
    for row, text in zip(problem, completions, strict=True):
        parsed = Problem.from_json(row)
        labels = step_labels(parsed, text)
        count = max(len(labels), len(parsed.changes)) + 1
        rewards.append((sum(labels) + verify(parsed.number, text)) / count)
    return rewards


def prompt_row(problem: Problem) -> Row:
    """A prompt-only row; the columns ``answer`` and ``problem`` are for the rewards."""
    return {
        "prompt": problem.messages(),
        "answer": str(problem.number),
        "problem": problem.to_json(),
    }


def demonstration_row(problem: Problem, seed: int, index: int, wrong: float) -> Row:
    """A row for SFT with a sampled solution, deterministic by (seed, index)."""
    text = demonstrate(problem, np.random.default_rng((seed, index, 1)), wrong)
    turn = {"role": "assistant", "content": text}
    return {"messages": [*problem.messages(), turn], "right": verify(problem.number, text)}


def words() -> list[str]:
    """Every word of problems and solutions, in a fixed order."""
    phrases = [w.replace("{}", "") for options in PHRASES.values() for w in options]
    texts = [*NAMES, *GOODS, *phrases, "has how many does have . ?", f"<< >> + - * = #### {END}"]
    numbers = [str(n) for n in range(TOP + 1)]
    return list(dict.fromkeys([*numbers, *(w for text in texts for w in text.split())]))


def tokenizer() -> PreTrainedTokenizerFast:
    """Word-level, with a token for each number from 0 to ``TOP``."""
    return word_level(words())


def read_gsm8k(path: str, limit: int | None = None) -> list[Row]:
    """GSM8K's own rows (columns "question" and "answer") as rows for SFT, RL and ``verify``.

    Returns:
        Rows with ``prompt`` (messages), ``completion`` (the solution) and ``answer`` (the number).

    Raises:
        DataError: the file cannot be read, or a row lacks a column or its ``####`` line.
    """
    rows: list[Row] = []
    for number, row in sources.read(path, limit=limit).rows:
        question, solution = row.get("question"), row.get("answer")
        if not isinstance(question, str) or not isinstance(solution, str):
            raise DataError(f"{path}: row {number}: needs texts 'question' and 'answer'")
        number_text = _final(solution)
        if number_text is None:
            raise DataError(f"{path}: row {number}: 'answer' does not end in a line '#### N'")
        rows.append(
            {
                "prompt": [{"role": "user", "content": question}],
                "completion": solution,
                "answer": number_text.replace(",", ""),
            }
        )
    return rows
