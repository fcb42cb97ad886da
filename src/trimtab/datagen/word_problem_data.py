"""Word problems as a stage of a pipeline: data, tokenizer, and a small model's configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from trimtab.config import Config
from trimtab.runs import write_atomic
from trimtab.runs.console import console
from trimtab.sandbox import arithmetic
from trimtab.sandbox import word_problems as sandbox
from trimtab.sandbox.arithmetic import Difficulty


class TasksConfig(Config):
    """Configuration of word problems."""

    out: str = "runs/tasks"
    seed: int = 0
    difficulty: Difficulty = Difficulty()
    wrong: float = Field(default=0.25, ge=0.0, le=1.0)
    """Probability that a step of a demonstration is wrong."""
    demonstrations: int = Field(default=20_000, gt=0)
    prompts: int = Field(default=4000, gt=0)
    """For RL."""
    heldout: int = Field(default=400, gt=0)
    """For the final comparison; no question of theirs is trained on."""
    hidden: int = Field(default=64, gt=0)
    """Width of the model that config.json describes, a Llama with random weights."""
    layers: int = Field(default=2, gt=0)
    heads: int = Field(default=4, gt=0)


def _lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(r) + "\n" for r in rows).encode()


def tasks(config: TasksConfig) -> dict[str, Any]:
    """Write demonstrations.jsonl, prompts.jsonl, heldout.jsonl, tokenizer/ and config.json into
    ``out``; the last two are a start for ``model.tokenizer`` and ``model.path``.

    Returns:
        Counts, and the share of demonstrations that end in the right answer.
    """
    c, out = config, Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    used = arithmetic.make_problems(c.difficulty, c.seed, c.demonstrations + c.prompts)
    held = arithmetic.make_problems(
        c.difficulty, c.seed, c.heldout, start=sandbox.HELD_OUT, seen=used
    )
    shown = [
        sandbox.demonstration_row(p, c.seed, i, c.wrong)
        for i, p in enumerate(used[: c.demonstrations])
    ]
    asked = [sandbox.prompt_row(p) for p in used[c.demonstrations :]]
    write_atomic(out / "demonstrations.jsonl", _lines(shown))
    write_atomic(out / "prompts.jsonl", _lines(asked))
    write_atomic(out / "heldout.jsonl", _lines([sandbox.prompt_row(p) for p in held]))
    made = sandbox.tokenizer()
    made.save_pretrained(out / "tokenizer")
    model = {
        "model_type": "llama",
        "vocab_size": len(made),
        "hidden_size": c.hidden,
        "intermediate_size": c.hidden * 11 // 4,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.heads,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "bos_token_id": made.bos_token_id,
        "eos_token_id": made.eos_token_id,
        "pad_token_id": made.pad_token_id,
    }
    write_atomic(out / "config.json", json.dumps(model, indent=1).encode())
    right = sum(row["right"] for row in shown) / len(shown)
    figures = {
        "demonstrations": c.demonstrations,
        "right": right,
        "prompts": c.prompts,
        "heldout": c.heldout,
    }
    write_atomic(out / "summary.json", json.dumps(figures, indent=1).encode())
    console.print(
        f"[bold]tasks[/bold]: {c.demonstrations} demonstrations ({right:.0%} end right), "
        f"{c.prompts} prompts, {c.heldout} held out -> {c.out}"
    )
    return figures
