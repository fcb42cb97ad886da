"""The recipe smollm2-tools on a scripted policy: its questions, its reward, and what its last stage measures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.support.chatml import chatml_model
from tests.support.scripted_engine import ScriptedEngine, last_message
from trimtab.data.render import Renderer
from trimtab.datagen.scratch import write_model_config
from trimtab.models.load import LM
from trimtab.recipes import episodes
from trimtab.recipes.smollm2_tools import calculate, prepare, right, success

OPERATORS = {"plus": "+", "minus": "-", "times": "*"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    _, tokenizer_path = chatml_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    write_model_config(folder, tokenizer, hidden=16, layers=1, heads=2, positions=2048)
    config = AutoConfig.from_pretrained(folder / "config.json")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "whole")
    tokenizer.save_pretrained(folder / "whole")
    return folder / "whole"


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_no_question_is_in_two_files(tmp_path: Path) -> None:
    sizes = prepare(tmp_path, demonstrations=40, prompts=60, held_out=20)
    files = {n: rows_of(tmp_path / f"{n}.jsonl") for n in ("demonstrations", "prompts", "heldout")}
    assert [len(rows) for rows in files.values()] == list(sizes.values())
    asked = [r["prompt"][-1]["content"] for rows in files.values() for r in rows]
    numbers = {tuple(re.findall(r"\d+|plus|minus|times", text)) for text in asked}
    assert len(numbers) == 120
    for row in files["prompts"]:
        a, word, b = re.findall(r"\d+|plus|minus|times", row["prompt"][0]["content"])
        assert row["answer"] == str(calculate(int(a), OPERATORS[word], int(b)))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("text", "answer", "score"),
    [
        ("The answer is 315,625.", "315625", 1.0),
        ("The answer is 315625.", "315625", 1.0),
        ("It is -12.", "-12", 1.0),
        ("It is 12.", "-12", 0.0),
        ("Of 3, 4 and 12", "12", 1.0),
        ("No idea.", "12", 0.0),
        (None, "12", 0.0),
    ],
)
def test_right_reads_the_last_number(text: str | None, answer: str, score: float) -> None:
    assert right([[{"role": "assistant", "content": text}]], [answer]) == [score]


def test_an_episode_without_messages_is_wrong() -> None:
    assert right([[]], ["1"]) == [0.0]


def solves(prompt: str) -> str:
    if "assistant\n<tool_call>" in prompt:
        return f"The answer is {int(last_message(prompt)):,}."
    a, word, b = re.findall(r"\d+|plus|minus|times", prompt.rsplit("<|im_start|>user", 1)[1])
    call = {
        "name": "calculate",
        "arguments": {"a": int(a), "operator": OPERATORS[word], "b": int(b)},
    }
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"


def test_success_tells_policies_apart(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path, demonstrations=1, prompts=1, held_out=8)
    scripts = iter([lambda _: "It is 7.", solves])

    def scripted(_: LM, renderer: Renderer) -> ScriptedEngine:
        return ScriptedEngine(renderer, next(scripts))

    monkeypatch.setattr(episodes.NativeEngine, "of", scripted)
    models = {name: {"path": str(model)} for name in ("guesses", "calls")}
    results = success(
        tmp_path, models, str(tmp_path / "heldout.jsonl"),
        {"max_turns": 3, "max_tokens": 400}, {"max_new_tokens": 200},
    )  # fmt: skip
    assert results["guesses"]["success"]["mean"] == 0.0 == results["guesses"]["called"]
    assert results["calls"]["success"]["mean"] == 1.0 == results["calls"]["called"]
    assert results["calls"]["gain"]["mean"] == 1.0
    written = json.loads((tmp_path / "success.json").read_text())
    assert [len(r["episodes"]) for r in written.values()] == [8, 8]
