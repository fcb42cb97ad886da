"""The starts that the arms of a seed share: world, demonstrations, SFT, labels, reward model.

Each is a recipe, so it is made once, recognised by the fingerprints of its stages, and resumed when it was
killed half-way.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.launch import recipe as recipes

BASE = "@sandbox/pretrained"
SAMPLING = {"max_new_tokens": 40}
GOLD = {"name": "gold", "function": "trimtab.sandbox.world:gold_reward"}
NEVER_LABELLED = 10_000
"""Added to the seed of a world: its prompts are for RL, and none of them was labelled."""
QUIET = {"save_steps": 0, "sample_steps": 0}


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
    return shared(starts, "sandbox", sandbox_stages(seed, sizes), seed)


def shared(
    starts: Path,
    name: str,
    stages: Mapping[str, dict[str, Any]],
    seed: int,
    inputs: Mapping[str, Path] | None = None,
) -> Path:
    """Run the stages of a start, unless they are complete, in a folder that their settings name.

    Args:
        inputs: Other starts that stages refer to as "@name".

    Returns:
        The folder.
    """
    text = json.dumps(stages, sort_keys=True)
    unique = f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
    folder = starts / unique / f"seed-{seed}"
    run_stages(folder, stages, seed, inputs)
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
