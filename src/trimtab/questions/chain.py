"""The starts that the arms of a seed share: world, demonstrations, SFT, labels, reward model.

Each is a recipe, so it is made once, recognised by the fingerprints of its stages, and resumed when it was
killed half-way.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.launch import recipe as recipes
from trimtab.runs import write_atomic
from trimtab.sandbox.arithmetic import Problem

BASE = "@sandbox/pretrained"
SAMPLING = {"max_new_tokens": 40}
GOLD = {"name": "gold", "function": "trimtab.sandbox.world:gold_reward"}
NEVER_LABELLED = 10_000
"""Added to the seed of a world: its prompts are for RL, and none of them was labelled."""
QUIET = {"save_steps": 0, "sample_steps": 0}
VERIFIER = {"name": "right", "function": "trimtab.sandbox.word_problems:verifier_reward"}
TASK: Mapping[str, Any] = {
    "difficulty": {"steps": 2, "largest": 15}, "wrong": 0.35, "hidden": 64, "layers": 2,
}  # fmt: skip
"""Word problems of two steps. A demonstrator's step is wrong 35 times in 100, so two right steps come 42
times in 100: about the pass rate of the SFT model."""
TRAINING: Mapping[str, Any] = {
    "epochs": 4, "batch_size": 64, "optim": {"lr": 3e-3, "warmup_ratio": 0.05},
}  # fmt: skip
"""SFT on word problems, from random weights."""
ONE_TO_SIX: Mapping[str, Any] = {
    **TASK, "difficulty": {"fewest": 1, "steps": 6, "largest": 15}, "wrong": 0.25,
}  # fmt: skip
"""Word problems of one to six steps, equally often: demonstrators solve three in four down to one in six."""


def sandbox_stages(seed: int, sizes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """The stages of the sandbox's start.

    Args:
        sizes: ``demonstrations``, ``labels`` (prompts that are ranked), ``reward_rows`` (of them, for the
            reward model), ``prompts`` (for RL), ``heldout``.
    """
    return {
        "world": {
            "type": "sandbox-data", "demonstrations": sizes["demonstrations"],
            "prompts": sizes["labels"], "heldout": sizes["heldout"],
        },
        "fresh": {
            "type": "sandbox-data", "seed": seed + NEVER_LABELLED, "demonstrations": 1,
            "prompts": sizes["prompts"], "heldout": 1,
        },
        "sft": {
            "type": "sft", "model": {"path": BASE}, "holdout": 50, "epochs": 2, "batch_size": 64,
            "data": {"path": "@world/demonstrations.jsonl"},
            "optim": {"lr": 5e-4, "warmup_ratio": 0.05}, "loop": QUIET,
        },
        "label": {
            "type": "sandbox-labels", "model": {"path": "@sft/model"}, "data": "@world/prompts.jsonl",
            "heldout": 200, "sampling": SAMPLING,
        },
        "reward": {
            "type": "reward", "model": {"path": BASE}, "epochs": 4, "batch_size": 16,
            "data": {"path": "@label/comparisons.jsonl", "limit": sizes["reward_rows"]},
            "eval_data": {"path": "@label/heldout.jsonl"},
            "optim": {"lr": 5e-4, "warmup_ratio": 0.1}, "loop": QUIET,
        },
    }  # fmt: skip


def sandbox(starts: Path, seed: int, sizes: Mapping[str, int]) -> Path:
    """Make the sandbox's start of a seed unless it is complete.

    Args:
        starts: Folder that holds the starts of all questions; equal starts are made once.

    Returns:
        Its folder: ``world``, ``fresh`` (prompts for RL), ``sft/model``, ``label``, ``reward/model``.
    """
    return _made_once(starts, "sandbox", sandbox_stages(seed, sizes), seed)


def word_problem_stages(
    sizes: Mapping[str, int],
    task: Mapping[str, Any] = TASK,
    training: Mapping[str, Any] = TRAINING,
) -> dict[str, dict[str, Any]]:
    """The stages of the word problems' start; arguments as of ``word_problems``."""
    return {
        "tasks": {
            "type": "word-problems", "demonstrations": sizes["demonstrations"],
            "prompts": sizes["prompts"], "heldout": sizes["heldout"], **task,
        },
        "sft": {
            "type": "sft", "holdout": 50, "data": {"path": "@tasks/demonstrations.jsonl"},
            "model": {"path": "@tasks/config.json", "tokenizer": "@tasks/tokenizer"},
            "loop": QUIET, **training,
        },
    }  # fmt: skip


def word_problems(
    starts: Path,
    seed: int,
    sizes: Mapping[str, int],
    *,
    task: Mapping[str, Any] = TASK,
    training: Mapping[str, Any] = TRAINING,
) -> Path:
    """Make the word problems' start of a seed unless it is complete.

    Args:
        starts: Folder that holds the starts of all questions; equal starts are made once.
        sizes: ``demonstrations``, ``prompts`` (for RL), ``heldout``.
        task: Other keys of the stage ``word-problems``, in place of ``TASK``: difficulty, share of wrong
            steps, size of the model, experts.
        training: Other keys of the stage ``sft``, in place of ``TRAINING``.

    Returns:
        Its folder: ``tasks`` (``prompts.jsonl``, ``heldout.jsonl``), ``sft/model``.
    """
    return _made_once(starts, "words", word_problem_stages(sizes, task, training), seed)


def _made_once(starts: Path, kind: str, stages: Mapping[str, dict[str, Any]], seed: int) -> Path:
    """Run stages in the folder that is named after them."""
    text = json.dumps(stages, sort_keys=True)
    name = f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
    folder = starts / name / f"seed-{seed}"
    run_stages(folder, stages, seed)
    return folder


def run_stages(
    folder: Path,
    stages: Mapping[str, dict[str, Any]],
    seed: int,
    inputs: Mapping[str, Path] | None = None,
) -> None:
    """Run stages as a recipe in ``folder``; complete ones are skipped.

    Args:
        inputs: Folders that stages refer to as "@name".

    Raises:
        ConfigError: a stage was made from other inputs.
    """
    places = {name: str(path) for name, path in (inputs or {}).items()}
    recipe = recipes.Recipe(out=str(folder), seed=seed, inputs=places, stages=dict(stages))
    recipes.run(recipe, f"the stages of {folder}")


def split_by_steps(file: Path, steps: Sequence[int]) -> None:
    """Write the problems of ``file`` that have n calculations to ``NAME-n.jsonl`` next to it, for each n."""
    rows = file.read_text().splitlines()
    counts = [len(Problem.from_json(json.loads(row)["problem"]).changes) for row in rows]
    for n in steps:
        part = "".join(f"{row}\n" for row, count in zip(rows, counts, strict=True) if count == n)
        write_atomic(file.with_name(f"{file.stem}-{n}.jsonl"), part.encode())
