"""What question 12 computes from rows of ``step-advantages``: pure functions on arrays."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from trimtab.questions.measure import Floats, Measure, over_sums
from trimtab.sandbox import word_problems
from trimtab.sandbox.arithmetic import Problem

Row = Mapping[str, Any]


def by_prompt(values_N: npt.ArrayLike, prompt_N: npt.ArrayLike) -> Floats:
    """Sums over the rows of each prompt, [prompts, ...]."""
    values, (_, place) = np.asarray(values_N, np.float64), np.unique(prompt_N, return_inverse=True)
    sums = np.zeros((int(place.max()) + 1, *values.shape[1:]))
    np.add.at(sums, place, values)
    return sums


def pearson(sums: Floats) -> Floats:
    """Correlation from sums [..., 6] of 1, x, y, xx, yy and xy; 0 where one does not vary."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread = np.sqrt(np.maximum(n * xx - x * x, 0.0) * np.maximum(n * yy - y * y, 0.0))
    return np.where(spread > 1e-6, (n * xy - x * y) / np.maximum(spread, 1e-6), 0.0)


def rank_correlation(x_N: npt.ArrayLike, y_N: npt.ArrayLike, prompt_N: npt.ArrayLike) -> Measure:
    """Spearman's correlation; draws are over prompts, with the ranks of the whole sample."""
    x, y = (rankdata(v) / len(np.atleast_1d(v)) - 0.5 for v in (x_N, y_N))
    parts = np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1)
    return over_sums(by_prompt(parts, prompt_N), pearson)


def explained(value_N: npt.ArrayLike, true_N: npt.ArrayLike, prompt_N: npt.ArrayLike) -> Measure:
    """Share of the variance of the true values that estimates explain, 1 - E(v - true)² / Var(true); it
    is negative for estimates that are worse than a constant."""
    value, true = (np.asarray(v, np.float64) for v in (value_N, true_N))
    parts = np.stack([np.ones(len(true)), true, true**2, (value - true) ** 2], axis=1)

    def statistic(sums: Floats) -> Floats:
        n, y, yy, error = np.moveaxis(sums, -1, 0)
        return 1.0 - error / np.maximum(yy - y * y / n, 1e-9)

    return over_sums(by_prompt(parts, prompt_N), statistic)


def true_effects(row: Row, wrong: float) -> list[float]:
    """The exact effect of each reasoning step that an end token closes; [] where text and tokens
    disagree on the steps."""
    problem = Problem.from_json(row["problem"])
    effects = word_problems.step_effects(problem, row["completion"], wrong)
    return effects if len(effects) in (len(row["steps"]), len(row["steps"]) - 1) else []


def true_values(row: Row, wrong: float) -> list[float]:
    """The exact probability of a right answer before each of the steps of ``true_effects``."""
    effects = true_effects(row, wrong)
    problem = Problem.from_json(row["problem"])
    first = word_problems.success_probability(problem, [], wrong)
    return list(itertools.accumulate(effects[:-1], initial=first)) if effects else []


def gains(row: Row, count: int) -> list[float]:
    """By how much each of the first ``count`` steps raises the score of a process reward model; before the
    first step it counts as 1/2, the same constant for all completions."""
    return np.diff([0.5, *row["score"][:count]]).tolist()


def mistakes(row: Row) -> list[bool]:
    """Whether each step is wrong."""
    problem = Problem.from_json(row["problem"])
    return [not right for right in word_problems.step_labels(problem, row["completion"])]


def repaired(rows: Sequence[Row]) -> Measure:
    """Of the completions with a wrong step, the share that end in the right answer."""
    parts: list[tuple[float, float]] = []
    for row in rows:
        right = word_problems.verify(row["answer"], row["completion"])
        parts.append((float(right and any(mistakes(row))), float(any(mistakes(row)))))
    sums = by_prompt(parts, [row["prompt"] for row in rows])
    return over_sums(sums, lambda s: s[..., 0] / np.maximum(s[..., 1], 1.0))


def cost_of_a_mistake(rows: Sequence[Row], wrong: float) -> Measure:
    """By how much the first wrong step of a completion lowers the probability of a right answer, where
    the remaining steps are wrong with probability ``wrong``; mean over completions with a wrong step."""
    parts: list[tuple[float, float]] = []
    for row in rows:
        effects, wrongs = true_effects(row, wrong), mistakes(row)
        first = wrongs.index(True) if any(wrongs) else len(effects)
        parts.append((-effects[first], 1.0) if first < len(effects) else (0.0, 0.0))
    sums = by_prompt(parts, [row["prompt"] for row in rows])
    return over_sums(sums, lambda s: s[..., 0] / np.maximum(s[..., 1], 1.0))
