"""What recipes/smollm2-tools.yaml needs: arithmetic for SmolLM2, a tool, demonstrations, and success rates."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from trimtab.config import build
from trimtab.recipes.episodes import play
from trimtab.rollout.environment import EnvironmentSpec
from trimtab.rollout.tool_format import instructions
from trimtab.rollout.tools import schema
from trimtab.runs import write_atomic
from trimtab.sample.sampler import SamplingConfig
from trimtab.stats.uncertainty import bootstrap_mean
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
    """1 where the last number of the last message is the answer, else 0.

    >>> right([[{"role": "assistant", "content": "The answer is 315,625."}]], ["315625"])
    [1.0]
    """
    scores: list[float] = []
    for messages, expected in zip(completions, answer, strict=True):
        text = str(messages[-1].get("content") or "") if messages else ""
        numbers = re.findall(r"-?\d+", re.sub(r"(?<=\d),(?=\d{3})", "", text))
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


def prepare(
    out: Path, demonstrations: int, prompts: int, held_out: int, seed: int = 0
) -> dict[str, int]:
    """Write demonstrations.jsonl, with the tool offered as episodes offer it, prompts.jsonl and heldout.jsonl.

    No question is in two of the files.
    """
    rng = np.random.default_rng((seed, 5))
    drawn: dict[str, tuple[Row, Row]] = {}
    while len(drawn) < demonstrations + prompts + held_out:
        row, arguments = _question(rng)
        drawn[json.dumps(arguments)] = row, arguments
    questions = list(drawn.values())
    system = {"role": "system", "content": instructions([schema(calculate)])}
    rows: list[Row] = []
    for row, arguments in questions[:demonstrations]:
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
    write("prompts.jsonl", [row for row, _ in questions[demonstrations : demonstrations + prompts]])
    write("heldout.jsonl", [row for row, _ in questions[demonstrations + prompts :]])
    return {"demonstrations": demonstrations, "prompts": prompts, "held_out": held_out}


def success(
    out: Path,
    models: dict[str, dict[str, Any]],
    data: str,
    environment: dict[str, Any],
    sampling: dict[str, Any],
) -> dict[str, Any]:
    """Play one episode of each held-out question.

    Returns:
        By model: the share of episodes that "right" scores 1, and its gain over the first model, paired by question,
        with intervals; and the share of episodes in which the tool was called. success.json has the episodes as well.
    """
    results: dict[str, Any] = {}
    first: npt.NDArray[np.float64] | None = None
    for name, model in models.items():
        _, played = play(
            model, data, build(EnvironmentSpec, environment), build(SamplingConfig, sampling),
            tools=[f"{__name__}:calculate"],
        )  # fmt: skip
        messages = [cast("list[dict[str, Any]]", c.messages) for _, c in played]
        scores = np.array(right(messages, [g.extra["answer"] for g, _ in played]))
        first = scores if first is None else first
        results[name] = {
            "success": bootstrap_mean(scores).summary(),
            "gain": bootstrap_mean(scores - first).summary(),
            "called": float(
                np.mean([any(m["role"] == "tool" for m in turns) for turns in messages])
            ),
            "episodes": messages,
        }
    write_atomic(out / "success.json", json.dumps(results, indent=1).encode())
    return {name: {k: v for k, v in r.items() if k != "episodes"} for name, r in results.items()}
