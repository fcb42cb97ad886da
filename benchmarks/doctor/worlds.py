"""What the runs start from: prompts of a task, comparisons, reward models; made once for a seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import trimtab
from benchmarks.doctor.planted import labelled
from trimtab.datagen.sandbox_data import prompt_rows
from trimtab.runs import write_atomic
from trimtab.sandbox.world import Kind, Scene, make_scene
from trimtab.train import reward

BASE = Path(trimtab.__file__).parent / "sandbox" / "base"

TASKS: dict[str, tuple[Kind, ...]] = {
    "all": ("ask", "silent", "summary", "refuse", "howto", "opinion"),
    "facts": ("ask", "silent", "opinion"),
    "tell": ("summary", "howto", "refuse"),
}
"""Prompts by kind; "tell" is never used for tuning."""


def scenes(kinds: Sequence[Kind], n: int, seed: int, stream: int = 7) -> list[Scene]:
    """``n`` scenes, kinds in turn."""
    return [
        make_scene(np.random.default_rng((seed, stream, i)), kinds[i % len(kinds)])
        for i in range(n)
    ]


def put(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Rows as jsonl."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json.dumps(r) + "\n" for r in rows).encode())
    return path


def prompts(path: Path, scenes: Sequence[Scene]) -> Path:
    """A file of prompts."""
    return put(path, prompt_rows(scenes))


def reward_model(
    folder: Path, seed: int, n: int, noise: float, task: str = "all", **labels: Any
) -> Path:
    """A reward model trained on ``n`` comparisons; its folder, made where it is not there."""
    if (folder / "model").is_dir():
        return folder / "model"
    all_scenes = scenes(TASKS[task], n + 150, seed, 11)
    put(folder / "pairs.jsonl", labelled(all_scenes[:n], seed, noise=noise, **labels))
    put(folder / "held.jsonl", labelled(all_scenes[n:], seed + 500, noise=noise, **labels))
    reward.main(
        reward.RewardConfig.model_validate(
            {
                "model": {"path": str(BASE)},
                "data": {"path": str(folder / "pairs.jsonl")},
                "eval_data": {"path": str(folder / "held.jsonl")},
                "out": str(folder),
                "epochs": 2,
                "batch_size": 32,
                "optim": {"lr": 5e-4, "warmup_ratio": 0.1},
            }
        )
    )
    return folder / "model"
