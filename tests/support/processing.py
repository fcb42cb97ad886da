"""Stepwise rows, a renderer and a stage's configuration for process rewards."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np

from tests.support import folders
from trimtab.config import build
from trimtab.data.render import Renderer
from trimtab.data.sources import Rows
from trimtab.train.process import ProcessConfig

ROWS = [
    {"prompt": "what is the sun ?", "completions": ["the sun", "red cat"], "labels": [True, False]},
    {"prompt": "who", "completions": ["a", "cat dog", "yes"], "labels": ["+", "neutral", "-"]},
    {"prompt": [{"role": "user", "content": "who ?"}], "completions": ["no"], "labels": [0.25]},
]


def renderer(limit: int = 1 << 20, **more: Any) -> Renderer:
    return Renderer(
        folders.tokenizer(), max_prompt_length=limit, max_completion_length=limit, **more
    )


def ids(text: str) -> np.ndarray:
    return np.array(folders.tokenizer()(text, add_special_tokens=False)["input_ids"])


def rows(*values: dict[str, Any]) -> Rows:
    return Rows("steps.jsonl", list(enumerate(values, 1)))


def write_steps(path: Path, n: int = 48) -> Path:
    """A step is correct when it holds no "not"."""
    rng = random.Random(3)
    lines: list[dict[str, object]] = []
    for _ in range(n):
        texts = [folders.sentence(rng).replace(".", "?") for _ in range(rng.randint(1, 4))]
        texts = [t + " not" if rng.random() < 0.4 else t.replace("not", "yes") for t in texts]
        lines.append(
            {
                "prompt": folders.sentence(rng),
                "completions": texts,
                "labels": ["not" not in t for t in texts],
            }
        )
    return folders.write(path, lines)


def base_folder(folder: Path) -> Path:
    """A tiny model and stepwise rows."""
    folders.model_folder(folder / "model")
    write_steps(folder / "steps.jsonl")
    return folder


def config(base: Path, out: Path, **more: Any) -> ProcessConfig:
    return build(
        ProcessConfig,
        {
            "out": str(out),
            "model": {"path": str(base / "model"), "device": "cpu"},
            "data": {"path": str(base / "steps.jsonl")},
            "separator": ".",
            "epochs": 2,
            "batch_size": 8,
            "holdout": 16,
            "optim": {"lr": 1e-3},
            "loop": {"save_steps": 2, "token_budget": 256},
            **more,
        },
    )
