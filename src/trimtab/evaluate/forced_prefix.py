"""``trimtab prefix-error``: the error of a model's next step on right and wrong prefixes, its own and
given ones. The difference is exposure bias: what its own errors cost it later."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from trimtab.config import Config
from trimtab.data import formats, sources
from trimtab.data.piece_tokens import continuation
from trimtab.data.render import Renderer
from trimtab.errors import DataError
from trimtab.models.load import ModelSpec, renderer_for
from trimtab.rollout.engine import Engine, generate
from trimtab.rollout.engines.native import NativeEngine
from trimtab.runs import to_json, write_atomic
from trimtab.sample.sampler import Request, SamplingConfig
from trimtab.sandbox import word_problems
from trimtab.sandbox.arithmetic import Problem
from trimtab.stats.uncertainty import Estimate, bootstrap_mean, bootstrap_sums
from trimtab.types import Group

log = logging.getLogger(__name__)

Prefix = Literal["own_right", "own_wrong", "given_right", "given_wrong"]
PREFIXES: tuple[Prefix, ...] = ("own_right", "own_wrong", "given_right", "given_wrong")
"""Steps that the model sampled, all right or at least one wrong; the right solution's steps; and
those with one wrong result, from which they continue correctly."""


class PrefixErrorConfig(Config):
    """Configuration of ``trimtab prefix-error``."""

    out: str = "runs/prefix_error"
    models: dict[str, ModelSpec] = Field(min_length=1)
    data: str
    """Word problems: rows with the column ``problem``, as ``trimtab word-problems`` writes them."""
    limit: int | None = Field(default=None, gt=0)
    num_completions: int = Field(default=4, gt=0)
    """Completions per prompt, and next steps per given prefix."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=96)
    step_tokens: int = Field(default=12, gt=0)
    """Tokens that a next step after a given prefix may take."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class NextStep:
    """One step that a model wrote, and what it was written after."""

    problem: int
    """Index of the problem."""
    number: int
    """Number of the step, 1 for the first."""
    prefix: Prefix | Literal["none"]
    """"none": the first step."""
    wrong: bool


@dataclass(frozen=True, slots=True)
class PrefixErrors:
    """Errors of a model's next step."""

    first: Estimate
    """Share of wrong first steps: there is no prefix."""
    errors: dict[str, Estimate]
    """By prefix: share of wrong next steps, of all later ones; the intervals are over problems."""
    counts: dict[str, int]
    """Next steps by prefix."""
    by_step: dict[int, dict[str, Estimate]]
    """The same by number of the step."""
    differences: dict[str, Estimate]
    """Points of error: "own_wrong - own_right", "own_right - given_right", "own_wrong -
    given_wrong". Compared within each number of the step, and weighted by how often the first of
    the two occurs there, so that late steps do not count as the prefix's fault."""

    def summary(self) -> dict[str, Any]:
        """As ``summary.json`` has it."""
        tables = (("errors", self.errors), ("differences", self.differences))
        return {
            "first": self.first.summary(),
            **{key: {k: e.summary() for k, e in table.items()} for key, table in tables},
            "counts": self.counts,
            "by_step": {
                str(n): {k: e.summary() for k, e in part.items()}
                for n, part in self.by_step.items()
            },
        }


def main(config: PrefixErrorConfig) -> dict[str, PrefixErrors]:
    """Measure every model; writes summary.json into ``out``.

    Raises:
        DataError: a row has no problem.
    """
    c = config
    rows = sources.read(c.data, limit=c.limit)
    examples = formats.prompts(rows)
    if absent := [e.row for e in examples if "problem" not in e.extra]:
        raise DataError(
            f"{c.data}: row {absent[0]} has no column 'problem'; give rows of trimtab word-problems"
        )
    results: dict[str, PrefixErrors] = {}
    for name, spec in c.models.items():
        renderer = renderer_for(spec)
        prompts = [g for g in map(renderer.prompt, examples) if g is not None]
        engine = NativeEngine.load(spec, renderer)
        steps = sample_next_steps(engine, renderer, prompts, c)
        results[name] = prefix_errors(steps)
        r = results[name]
        log.info(
            "%s: error of the next step %s",
            name,
            ", ".join(
                f"{k} {e.value:.3f} [{e.low:.3f}, {e.high:.3f}]" for k, e in r.errors.items()
            ),
        )
    out = Path(c.out)
    out.mkdir(parents=True, exist_ok=True)
    summary = {name: result.summary() for name, result in results.items()}
    write_atomic(out / "summary.json", to_json(summary, indent=1).encode())
    return results


def sample_next_steps(
    engine: Engine, renderer: Renderer, prompts: Sequence[Group], config: PrefixErrorConfig
) -> list[NextStep]:
    """Steps of sampled completions, and steps sampled after given prefixes of the same problems."""
    c, n = config, config.num_completions
    problems = [Problem.from_json(g.extra["problem"]) for g in prompts]
    requests = [Request(g.prompt, (c.seed, i, 0), n) for i, g in enumerate(prompts)]
    steps: list[NextStep] = []
    for i, sampled in enumerate(generate(engine, requests, c.sampling)):
        for x in sampled:
            text = renderer.completion(x.ids, x.finish).text
            steps += own_steps(i, problems[i], text)
    given_prefixes: list[tuple[int, int, Prefix, str]] = []
    for i, problem in enumerate(problems):
        for number in range(2, len(problem.changes) + 1):
            rng = np.random.default_rng((c.seed, i, number))
            given_prefixes.append((i, number, "given_right", right_prefix(problem, number - 1)))
            if wrong := wrong_prefix(problem, number - 1, rng):
                given_prefixes.append((i, number, "given_wrong", wrong))
    requests = [
        Request(
            np.concatenate([prompts[i].prompt, _ids(renderer, prefix)]),
            (c.seed, i, number, 1 + PREFIXES.index(kind)),
            n,
            c.step_tokens,
        )
        for i, number, kind, prefix in given_prefixes
    ]
    for (i, number, kind, prefix), sampled in zip(
        given_prefixes, generate(engine, requests, c.sampling), strict=True
    ):
        for x in sampled:
            text = f"{prefix}{renderer.completion(x.ids, x.finish).text}"
            labels = word_problems.step_labels(problems[i], text)
            wrong = len(labels) < number or not labels[number - 1]
            steps.append(NextStep(i, number, kind, wrong))
    return steps


def _ids(renderer: Renderer, text: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(continuation(renderer.tokenizer, text)[0], dtype=np.int64)


def own_steps(index: int, problem: Problem, text: str) -> list[NextStep]:
    """The steps of a completion, up to the first that is no calculation.

    A step that is missing is wrong. What follows a text that cannot be read is neither right nor
    wrong, so it is left out.
    """
    labels = word_problems.step_labels(problem, text)
    readable = word_problems.readable_steps(text)
    steps: list[NextStep] = []
    for at in range(min(len(problem.changes), readable + 1)):
        wrong = at >= len(labels) or not labels[at]
        right_so_far: Prefix = "own_right" if all(labels[:at]) else "own_wrong"
        steps.append(NextStep(index, at + 1, right_so_far if at else "none", wrong))
    return steps


def right_prefix(problem: Problem, count: int) -> str:
    """The first ``count`` steps of the right solution, each on its line."""
    return _lines(problem, problem.results, count)


def wrong_prefix(problem: Problem, count: int, rng: np.random.Generator) -> str | None:
    """The first ``count`` steps with one wrong result, from which the later ones continue correctly;
    None if none of them may be wrong."""
    places = [
        (at, errors) for at in range(count) if (errors := problem.mistakes(at, problem.results[at]))
    ]
    if not places:
        return None
    at, errors = places[int(rng.integers(len(places)))]
    results = list(problem.results[:at])
    results.append(errors[int(rng.integers(len(errors)))])
    for change in problem.changes[at + 1 :]:
        results.append(change(results[-1]))
    return _lines(problem, results, count)


def _lines(problem: Problem, results: Sequence[int], count: int) -> str:
    return "".join(line + "\n" for line in problem.solution(results).split("\n")[:count])


def prefix_errors(steps: Sequence[NextStep]) -> PrefixErrors:
    """Shares of wrong steps by prefix, and their differences at equal numbers of the step."""

    def share(part: Sequence[NextStep]) -> Estimate:
        return bootstrap_mean([float(s.wrong) for s in part], [s.problem for s in part])

    of_prefix = {p: [s for s in steps if s.prefix == p] for p in PREFIXES}
    numbers = sorted({s.number for s in steps if s.prefix != "none"})
    pairs: tuple[tuple[Prefix, Prefix], ...] = (
        ("own_wrong", "own_right"),
        ("own_right", "given_right"),
        ("own_wrong", "given_wrong"),
    )
    return PrefixErrors(
        first=share([s for s in steps if s.prefix == "none"]),
        errors={p: share(part) for p, part in of_prefix.items() if part},
        counts={p: len(part) for p, part in of_prefix.items()},
        by_step={
            n: {
                p: share(at) for p in PREFIXES if (at := [s for s in of_prefix[p] if s.number == n])
            }
            for n in numbers
        },
        differences={
            f"{a} - {b}": difference
            for a, b in pairs
            if (difference := _difference(of_prefix[a], of_prefix[b], numbers)) is not None
        },
    )


def _difference(
    a: Sequence[NextStep], b: Sequence[NextStep], numbers: Sequence[int]
) -> Estimate | None:
    """Error after a minus error after b at the same number of the step, weighted by a; None where no
    number has both."""
    both = [n for n in numbers if any(s.number == n for s in a) and any(s.number == n for s in b)]
    if not both:
        return None
    problems = sorted({s.problem for s in (*a, *b)})
    place = {p: i for i, p in enumerate(problems)}
    column = {n: i for i, n in enumerate(both)}
    # Sums per problem: for each number wrong and all of a, then wrong and all of b.
    sums = np.zeros((len(problems), 4, len(both)))
    for offset, part in ((0, a), (2, b)):
        for s in part:
            if s.number in column:
                sums[place[s.problem], offset, column[s.number]] += s.wrong
                sums[place[s.problem], offset + 1, column[s.number]] += 1

    def figure(
        total: np.ndarray[Any, np.dtype[np.float64]],
    ) -> np.ndarray[Any, np.dtype[np.float64]]:
        wrong_a, all_a, wrong_b, all_b = np.moveaxis(total.reshape(*total.shape[:-1], 4, -1), -2, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            gap = wrong_a / all_a - wrong_b / all_b
        usable = np.isfinite(gap)
        weight = np.where(usable, all_a, 0.0)
        return np.where(usable, gap * weight, 0.0).sum(-1) / weight.sum(-1)

    return bootstrap_sums(sums.reshape(len(problems), -1), figure)
