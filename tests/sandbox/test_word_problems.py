"""Word problems: the truth behind each can be checked by hand."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from trimtab.config import build
from trimtab.datagen.word_problem_data import WordProblemsConfig, main
from trimtab.errors import ConfigError, DataError
from trimtab.launch.commands import COMMANDS
from trimtab.sandbox import arithmetic, word_problems
from trimtab.sandbox.arithmetic import Change, Difficulty, Problem
from trimtab.sandbox.world import NAMES

DATA = Path(os.environ.get("TRIMTAB_DATA", Path(__file__).parents[3] / "shared" / "data"))

ANNA = Problem("anna", "coins", 12, (Change("+", 7), Change("-", 3), Change("*", 2)))
RIGHT = "<< 12 + 7 = 19 >> ;\n<< 19 - 3 = 16 >> ;\n<< 16 * 2 = 32 >> ;\n#### 32"
SLIPPED = "<< 12 + 7 = 19 >> ; << 19 - 3 = 15 >> ; << 15 * 2 = 30 >> ; #### 30"


def test_a_problem_by_hand() -> None:
    assert ANNA.question == (
        "anna has 12 coins . anna finds 7 more . anna loses 3 of them . "
        "anna then has 2 times as many . how many coins does anna have ?"
    )
    assert ANNA.results == (19, 16, 32)
    assert ANNA.answer == RIGHT
    assert word_problems.step_labels(ANNA, RIGHT) == [True, True, True]
    assert word_problems.step_labels(ANNA, SLIPPED) == [True, False, True]
    assert word_problems.step_labels(ANNA, word_problems.steps(SLIPPED)[0]) == [True]


@pytest.mark.parametrize(
    ("said", "right"),
    [
        (RIGHT, True),
        ("#### 32", True),
        ("#### 32 ", True),
        (SLIPPED, False),
        ("#### 33", False),
        ("#### -32", False),
        ("#### 3 2", False),
        ("32", False),
        ("", False),
        ("####", False),
        ("#### thirty", False),
        ("#### 31 #### 32", False),
        ("#### 32 #### 32", False),
        ("#### 32 coins", False),
        ("#### ,", False),
        (RIGHT.replace("#### 32", ""), False),
    ],
)
def test_verifier(said: str, right: bool) -> None:
    assert word_problems.verify(ANNA.number, said) is right
    assert word_problems.verifier_reward(["q"], [said], [str(ANNA.number)]) == [float(right)]


@pytest.mark.parametrize(
    ("said", "labels"),
    [
        ("<< 12 + 7 = 20 >> ; << 20 - 3 = 17 >> ;", [False, True]),
        ("<< 12 + 7 = 19 >> ; << 18 - 3 = 15 >> ;", [True, False]),  # not what came before
        ("<< 12 - 3 = 9 >> ;", [False]),  # not its turn
        ("<< 12 + 3 = 15 >> ;", [False]),
        ("<< 12 + 7 19 >> ; << 19 - 3 = 16 >> ;", [False, False]),  # nothing to go on from
        ("; ;", [False, False]),
        ("<<12+7=19>>;", [True]),
        (f"{RIGHT} ; << 32 + 1 = 33 >> ;", [True, True, True, False, False]),
        ("<< 12 + 7 = 19 >>", []),
    ],
)
def test_step_labels_of_bent_solutions(said: str, labels: list[bool]) -> None:
    assert word_problems.step_labels(ANNA, said) == labels


def test_dense_oracle() -> None:
    raw = ANNA.to_json()
    cases = {RIGHT: 1.0, SLIPPED: 2 / 4, "": 0.0, "#### 32": 1 / 4, "; ; ; ; #### 32": 1 / 5}
    found = word_problems.steps_reward(["q"] * len(cases), list(cases), [raw] * len(cases))
    assert found == pytest.approx(list(cases.values()))


def test_chance_and_effects_by_hand() -> None:
    """Two steps from 5, errors of up to 3 either way: a second one cancels a first in 1 of 6."""
    two = Problem("ben", "kites", 5, (Change("+", 4), Change("+", 2)))
    p = 0.3
    after = (p / 6, 1 - p)  # after a wrong and a right first step
    before = (1 - p) * after[1] + p * after[0]
    assert word_problems.success_probability(two, [], p) == pytest.approx(before)
    assert word_problems.success_probability(two, [9], p) == pytest.approx(after[1])
    assert word_problems.success_probability(two, [8], p) == pytest.approx(after[0])
    assert word_problems.success_probability(two, [8, 11], p) == 1.0
    said = "<< 5 + 4 = 8 >> ; << 8 + 2 = 10 >> ; #### 10"
    assert word_problems.step_effects(two, said, p) == pytest.approx([after[0] - before, -after[0]])
    garbled = "<< 5 + 4 >> ; << 9 + 2 = 11 >> ;"
    assert word_problems.step_effects(two, garbled, p) == pytest.approx([-before, 0.0])


def test_chance_is_the_share_of_right_demonstrations() -> None:
    n, p = 4000, 0.25
    right = [
        word_problems.verify(
            ANNA.number, word_problems.demonstrate(ANNA, np.random.default_rng(i), p)
        )
        for i in range(n)
    ]
    exact = word_problems.success_probability(ANNA, [], p)
    assert abs(np.mean(right) - exact) < 4 * np.sqrt(exact * (1 - exact) / n)


def test_demonstrations_err_as_told() -> None:
    level = Difficulty(steps=4, operations=("+", "-", "*"))
    labels: list[bool] = []
    for i, problem in enumerate(arithmetic.make_problems(level, 3, 500)):
        rng = np.random.default_rng(i)
        said = word_problems.demonstrate(problem, rng, 0.25)
        labels += word_problems.step_labels(problem, said)
        assert word_problems.demonstrate(problem, rng, 0.0) == problem.answer
        assert all(word_problems.step_labels(problem, problem.answer))
        assert word_problems.verify(problem.number, problem.answer)
        assert word_problems.verify(problem.answer, problem.answer)
    assert len(labels) == 2000
    assert abs(np.mean(labels) - 0.75) < 0.04


@pytest.mark.parametrize(
    "level",
    [
        Difficulty(steps=1),
        Difficulty(steps=6, largest=90, operand=90, operations=("+", "-", "*")),
        Difficulty(steps=5, fewest=2, largest=10, operand=2, operations=("+",)),
    ],
)
def test_difficulty_is_kept(level: Difficulty) -> None:
    made = arithmetic.make_problems(level, 0, 300)
    counts = {len(p.changes) for p in made}
    assert counts == set(range(level.fewest or level.steps, level.steps + 1))
    for p in made:
        assert all(1 <= r <= level.largest for r in p.results)
        numbers = [c.number for c in p.changes if c.operation != "*"]
        assert all(1 <= n <= level.operand for n in numbers)


@pytest.mark.slow
def test_deterministic_and_held_out_apart() -> None:
    level = Difficulty(steps=2)
    made = arithmetic.make_problems(level, 5, 20)
    assert made == arithmetic.make_problems(level, 5, 20)
    assert made[10:] == arithmetic.make_problems(level, 5, 10, start=10)
    assert made != arithmetic.make_problems(level, 6, 20)
    assert word_problems.demonstration_row(made[0], 5, 0, 0.5) == word_problems.demonstration_row(
        made[0], 5, 0, 0.5
    )
    assert all(Problem.from_json(p.to_json()) == p for p in made)
    easy = Difficulty(steps=1, largest=10, operand=2)
    used = arithmetic.make_problems(easy, 0, 500)
    held = arithmetic.make_problems(easy, 0, 100, start=word_problems.HELD_OUT, seen=used)
    assert not {p.question for p in used} & {p.question for p in held}
    every = [
        Problem(who, goods, start, (Change(operation, number, phrase),))
        for who, goods, start in itertools.product(NAMES, arithmetic.GOODS, range(2, 11))
        for operation in easy.operations
        for number in (1, 2)
        for phrase in range(len(arithmetic.PHRASES[operation]))
    ]
    with pytest.raises(DataError, match=r"only 0 of 20 problems .* raise difficulty"):
        arithmetic.make_problems(easy, 0, 20, seen=every)


def test_tokenizer_has_a_token_for_each_word() -> None:
    tokenizer = word_problems.tokenizer()
    level = Difficulty(steps=6, largest=90, operations=("+", "-", "*"))
    for i, problem in enumerate(arithmetic.make_problems(level, 8, 300)):
        said = word_problems.demonstrate(problem, np.random.default_rng(i), 0.5)
        for text in (problem.question, said):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.decode(ids) == " ".join(text.split())
            assert len(ids) == len(text.split())
        decoded = tokenizer.decode(tokenizer(said)["input_ids"])
        assert word_problems.step_labels(problem, decoded) == word_problems.step_labels(
            problem, said
        )


def test_stage_writes_a_start(tmp_path: Path) -> None:
    command = COMMANDS["word-problems"]
    config, run = command.load_config(), command.load_function()
    given = {"demonstrations": 30, "prompts": 10, "heldout": 10, "wrong": 0.0}
    for name in ("a", "b"):
        figures = run(build(config, {"out": str(tmp_path / name), **given}, "test"))
        assert figures.right == 1.0
    for file in ("demonstrations.jsonl", "prompts.jsonl", "heldout.jsonl", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    row = json.loads((tmp_path / "a" / "heldout.jsonl").read_text().splitlines()[0])
    problem = Problem.from_json(row["problem"])
    assert row["prompt"] == problem.messages()
    assert word_problems.verify(row["answer"], problem.answer)


def test_bad_settings_are_refused() -> None:
    for given, key in (
        ({"difficulty": {"steps": 7}}, "difficulty.steps"),
        ({"difficulty": {"steps": 2, "fewest": 3}}, "fewest"),
        ({"difficulty": {"operations": ["*"]}}, "operations"),
        ({"wrong": 1.5}, "wrong"),
        ({"experts": 2, "experts_per_token": 3}, "experts_per_token"),
    ):
        with pytest.raises(ConfigError, match=key):
            build(WordProblemsConfig, given, "test")


def test_the_model_may_have_experts_and_a_larger_vocabulary(tmp_path: Path) -> None:
    keys = {"demonstrations": 5, "prompts": 5, "heldout": 5, "hidden": 16, "layers": 1}
    wide = {"vocabulary": 500, "experts": 4, "experts_per_token": 1, "expert_size": 12}
    main(build(WordProblemsConfig, {"out": str(tmp_path), **keys, **wide}, "test"))
    config = AutoConfig.from_pretrained(tmp_path / "config.json")
    shapes = {p.shape for p in AutoModelForCausalLM.from_config(config).parameters()}
    assert (500, 16) in shapes
    assert (4, 24, 16) in shapes  # gate and up projections of four experts of width 12
    few = build(WordProblemsConfig, {"out": str(tmp_path), **keys, "vocabulary": 10}, "test")
    with pytest.raises(ConfigError, match="vocabulary: 10"):
        main(few)


def test_the_documented_example_is_right() -> None:
    page = (Path(__file__).parents[2] / "docs" / "sandbox.md").read_text(encoding="utf-8")
    assert ANNA.question in page.replace("\n", " ")
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| `<<")]
    assert len(rows) == 3
    results: list[int] = []
    said = ""
    for row in rows:
        step, label, chance, effect = (cell.strip(" `") for cell in row[1:5])
        said += step
        results.append(int(step.split("=")[1].split()[0]))
        assert (label == "right") == word_problems.step_labels(ANNA, said)[-1]
        assert float(chance) == pytest.approx(
            word_problems.success_probability(ANNA, results, 0.25), abs=5e-4
        )
        assert float(effect) == pytest.approx(
            word_problems.step_effects(ANNA, said, 0.25)[-1], abs=5e-4
        )


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no data at {DATA}; set TRIMTAB_DATA")
def test_gsm8k_itself() -> None:
    rows = word_problems.read_gsm8k(str(DATA / "gsm8k-test.jsonl.gz"))
    assert len(rows) == 1319
    for row in rows:
        assert word_problems.verify(row["answer"], row["completion"])
        assert not word_problems.verify(float(row["answer"]) + 1, row["completion"])


def test_gsm8k_rows_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    good = {"question": "how many ?", "answer": "2 + 1,000 = <<2+1000=1002>>1,002 .\n#### 1,002"}
    file.write_text(json.dumps(good) + "\n")
    assert word_problems.read_gsm8k(str(file))[0]["answer"] == "1002"
    for bad in ({"question": "how many ?", "answer": "two"}, {"question": "how many ?"}):
        file.write_text(json.dumps(good) + "\n" + json.dumps(bad) + "\n")
        with pytest.raises(DataError, match="row 2"):
            word_problems.read_gsm8k(str(file))


def test_values_of_steps_and_tokens_add_up_to_the_effects() -> None:
    pieces = [p.strip() for p in SLIPPED.split(";")]
    (by_step,) = word_problems.step_values([""], [pieces], [ANNA.to_json()], 0.25)
    first = word_problems.success_probability(ANNA, [], 0.25)
    effects = [b - a for a, b in itertools.pairwise([first, *by_step])]
    assert effects[:3] == pytest.approx(word_problems.step_effects(ANNA, SLIPPED, 0.25))
    assert by_step[-1] == 0.0
    (by_token,) = word_problems.step_values(
        [""], [[*SLIPPED.split(), ""]], [ANNA.to_json()], 0.25, " "
    )
    # A step is decided by its result: the sixth of its eight tokens.
    changes = [i for i, (a, b) in enumerate(itertools.pairwise([first, *by_token])) if a != b]
    assert changes == [5, 13, 21]
    assert [by_token[i] for i in (7, 15, 23)] == pytest.approx(by_step[:3])


def test_a_step_that_cannot_be_read_ends_all_hope() -> None:
    problem = Problem("anna", "coins", 5, (Change("+", 3),))
    assert (
        word_problems.prefix_value(problem, "<< 5 + 3", 0.25)
        == word_problems.prefix_value(problem, "", 0.25)
        == 0.75
    )
    assert word_problems.prefix_value(problem, "<< 5 + ;", 0.25) == 0.0
    assert word_problems.prefix_value(problem, "<< 5 + 3 = 9 >> ; #### 8", 0.25) == 1.0
