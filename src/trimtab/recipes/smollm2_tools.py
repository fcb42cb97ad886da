"""What recipes/smollm2-tools.yaml needs: arithmetic for SmolLM2, a tool, and demonstrations of its use."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trimtab.rollout.tool_format import instructions
from trimtab.rollout.tools import schema
from trimtab.runs import write_atomic
from trimtab.types import Row

_TEMPLATES = (
    "What is {a} {word} {b}?",
    "Compute {a} {word} {b}.",
    "I need the value of {a} {word} {b}. Can you tell me?",
)
_SYMBOLS = {"plus": "+", "minus": "-", "times": "*"}


def calculate(a: int, operator: Literal["+", "-", "*"], b: int) -> int:
    """
    Computes with two whole numbers.

    Args:
        a: The first number.
        operator: What to do with them.
        b: The second number.

    Returns:
        The result.
    """
    return {"+": a + b, "-": a - b, "*": a * b}[operator]


def right(completions: list[list[dict[str, Any]]], answer: list[str]) -> list[float]:
    """1 where the last number of the last message is the answer, else 0."""
    scores: list[float] = []
    for messages, expected in zip(completions, answer, strict=True):
        numbers = re.findall(r"-?\d+", str(messages[-1].get("content") or "")) if messages else []
        scores.append(float(bool(numbers) and numbers[-1] == expected))
    return scores


def _question(rng: np.random.Generator) -> tuple[Row, Row]:
    """A row, and the arguments of the call that answers it."""
    a, b = (int(x) for x in rng.integers(100, 1000, 2))
    word = str(rng.choice(list(_SYMBOLS)))
    arguments: Row = {"a": a, "operator": _SYMBOLS[word], "b": b}
    text = str(rng.choice(_TEMPLATES)).format(a=a, word=word, b=b)
    answer = str(calculate(a, _SYMBOLS[word], b))  # pyright: ignore[reportArgumentType]
    return {"prompt": [{"role": "user", "content": text}], "answer": answer}, arguments


def prepare(out: Path, demonstrations: int, prompts: int, seed: int = 0) -> dict[str, int]:
    """Write demonstrations.jsonl, with the tool offered as episodes offer it, and prompts.jsonl."""
    rng = np.random.default_rng((seed, 5))
    rows: list[Row] = []
    system = {"role": "system", "content": instructions([schema(calculate)])}
    for _ in range(demonstrations):
        row, arguments = _question(rng)
        call = json.dumps({"name": "calculate", "arguments": arguments})
        turns = [
            {"role": "assistant", "content": f"<tool_call>\n{call}\n</tool_call>"},
            {"role": "tool", "content": row["answer"]},
            {"role": "assistant", "content": f"The answer is {row['answer']}."},
        ]
        rows.append({"prompt": [system, *row["prompt"]], "completion": turns})

    def write(name: str, lines: Sequence[Row]) -> None:
        write_atomic(out / name, "".join(json.dumps(r) + "\n" for r in lines).encode())

    write("demonstrations.jsonl", rows)
    write("prompts.jsonl", [_question(rng)[0] for _ in range(prompts)])
    return {"demonstrations": demonstrations, "prompts": prompts}
