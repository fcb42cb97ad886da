"""Error of the next step on given and own prefixes: by hand, with a scripted solver, as a command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support import folders
from tests.support.scripted_engine import ScriptedEngine
from trimtab.cli.main import main as cli
from trimtab.config import build
from trimtab.data import formats, sources
from trimtab.data.render import Renderer
from trimtab.datagen.word_problem_data import WordProblemsConfig
from trimtab.datagen.word_problem_data import main as write_problems
from trimtab.errors import DataError
from trimtab.evaluate.forced_prefix import (
    NextStep,
    PrefixErrorConfig,
    main,
    own_steps,
    prefix_errors,
    right_prefix,
    sample_next_steps,
    wrong_prefix,
)
from trimtab.sandbox import word_problems
from trimtab.sandbox.arithmetic import Change, Difficulty, Problem, make_problems

ANNA = Problem("anna", "coins", 12, (Change("+", 7), Change("-", 3), Change("*", 2)))


def kinds(text: str) -> list[tuple[int, str, bool]]:
    return [(s.number, s.prefix, s.wrong) for s in own_steps(0, ANNA, text)]


def test_own_steps_by_hand() -> None:
    right, slipped = (
        "<< 12 + 7 = 19 >> ; << 19 - 3 = 16 >> ;",
        "<< 12 + 7 = 18 >> ; << 18 - 3 = 15 >> ;",
    )
    assert kinds(f"{right} << 16 * 2 = 31 >> ; #### 31") == [
        (1, "none", False), (2, "own_right", False), (3, "own_right", True),
    ]  # fmt: skip
    # The error is counted once; what follows from it is right.
    assert kinds(f"{slipped} << 15 * 2 = 30 >> ; #### 30") == [
        (1, "none", True), (2, "own_wrong", False), (3, "own_wrong", False),
    ]  # fmt: skip
    # A missing step is wrong; what would follow an unreadable one is left out.
    assert kinds(f"{right} #### 16")[-1] == (3, "own_right", True)
    assert kinds("well ; << 12 + 7 = 19 >> ;") == [(1, "none", True)]
    assert kinds("") == [(1, "none", True)]


def test_given_prefixes_by_hand() -> None:
    assert right_prefix(ANNA, 2) == "<< 12 + 7 = 19 >> ;\n<< 19 - 3 = 16 >> ;\n"
    for seed in range(20):
        prefix = wrong_prefix(ANNA, 2, np.random.default_rng(seed))
        assert prefix is not None and prefix.count("\n") == 2
        assert sorted(word_problems.step_labels(ANNA, prefix)) == [False, True]


def test_differences_by_hand() -> None:
    """Late steps are harder here; the prefix itself costs half a point at step 2, nothing at 3."""
    steps = [NextStep(i, 2, "own_right", wrong=False) for i in range(8)]
    steps += [NextStep(i, 2, "own_wrong", wrong=i % 2 == 0) for i in range(2)]
    steps += [NextStep(i, 3, p, wrong=True) for i in range(6) for p in ("own_right", "own_wrong")]
    result = prefix_errors(steps)
    assert result.errors["own_wrong"].value == pytest.approx(7 / 8)
    assert result.errors["own_right"].value == pytest.approx(6 / 14)
    # Weighted by own_wrong: 2 steps at 0.5, 6 at 0.
    assert result.differences["own_wrong - own_right"].value == pytest.approx(2 * 0.5 / 8)
    assert "own_right - given_right" not in result.differences
    assert result.by_step[3]["own_right"].value == 1.0
    json.dumps(result.summary())


class Solver:
    """Solves problems, with known weaknesses: it errs at step 2 if the start is odd, and at every step
    after a wrong result."""

    def __init__(self, problems: list[Problem]) -> None:
        self.of_question = {p.question: p for p in problems}

    def __call__(self, prompt: str) -> str:
        question, _, prefix = prompt.partition("<assistant>")
        problem = self.of_question[question.partition("<user>")[2].strip()]
        steps = word_problems.steps(prefix)
        results = [int(s.split("=")[1].split()[0]) for s in steps]
        wrong = results != list(problem.results[: len(results)])
        for at in range(len(results), len(problem.changes)):
            x = problem.changes[at](results[-1] if results else problem.start)
            slips = wrong or (at == 1 and problem.start % 2 == 1)
            results.append(x + slips)
            wrong = wrong or slips
        lines = problem.solution(results).split("\n")
        return "\n".join(lines[len(steps) :])


def test_the_weaknesses_of_a_solver_are_measured() -> None:
    problems = make_problems(Difficulty(steps=4), 3, 30)
    renderer = Renderer(word_problems.tokenizer())
    rows = [word_problems.prompt_row(p) for p in problems]
    examples = formats.prompts(sources.Rows("x", list(enumerate(rows, 1))))
    prompts = [g for g in map(renderer.prompt, examples) if g is not None]
    config = build(PrefixErrorConfig, {"models": {"m": {"path": "x"}}, "data": "x", "num_completions": 2})  # fmt: skip
    engine = ScriptedEngine(renderer, Solver(problems))
    steps = sample_next_steps(engine, renderer, prompts, config)
    result = prefix_errors(steps)
    odd = np.mean([p.start % 2 for p in problems])
    assert 0 < odd < 1 and result.first.value == 0.0
    assert result.by_step[2]["own_right"].value == pytest.approx(odd)
    assert result.by_step[2]["given_right"].value == pytest.approx(odd)
    for number in (3, 4):
        assert result.by_step[number]["own_right"].value == 0.0
        assert result.by_step[number]["given_right"].value == 0.0
        assert result.by_step[number]["own_wrong"].value == 1.0
        assert result.by_step[number]["given_wrong"].value == 1.0
    assert result.differences["own_wrong - own_right"].value == 1.0
    assert result.differences["own_right - given_right"].value == 0.0
    # A given prefix buys one step, not a whole solution.
    assert max(len(x.ids) for x in engine.samples[60:]) <= config.step_tokens


def test_as_a_command(tmp_path: Path) -> None:
    write_problems(build(WordProblemsConfig, {
        "out": str(tmp_path / "w"), "demonstrations": 2, "prompts": 2, "heldout": 3,
        "hidden": 16, "layers": 1, "heads": 2,
    }))  # fmt: skip
    model = f"{{m: {{path: {tmp_path}/w/config.json, tokenizer: {tmp_path}/w/tokenizer}}}}"
    cli(["prefix-error", "--models", model, "--data", str(tmp_path / "w" / "heldout.jsonl"), "--out",
         str(tmp_path / "o"), "--num_completions", "1", "--sampling.max_new_tokens", "12"])  # fmt: skip
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())["m"]
    assert summary["counts"]["given_right"] == 3 * 2 and summary["first"]["mean"] == 1.0
    folders.prompts(tmp_path / "p.jsonl", 2)
    with pytest.raises(DataError, match="no column 'problem'"):
        main(build(PrefixErrorConfig, {"models": {"m": {"path": "x"}}, "data": str(tmp_path / "p.jsonl")}))  # fmt: skip
