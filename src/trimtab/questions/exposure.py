"""Exposure bias on word problems: what a model's own errors cost it later, after SFT and after RL."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.questions import chain
from trimtab.questions.measure import Measure
from trimtab.runs import read_object

SAMPLING = {"max_new_tokens": 44}
"""Three steps and the last line take 28 tokens."""
MEASURES = {
    "cost_of_error": ("differences", "own_wrong - own_right"),
    "own_minus_given": ("differences", "own_right - given_right"),
    "error_after_own": ("errors", "own_right"),
}
"""Metric -> where it stands in the summary of ``trimtab prefix-error``."""


def solver_stages(sizes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Problems of three steps, and a small model trained on solutions with errors.

    Args:
        sizes: ``solutions`` (demonstrations) and ``problems`` (held out).
    """
    return {
        "tasks": {
            "type": "word-problems", "difficulty": {"steps": 3, "largest": 15}, "wrong": 0.2,
            "demonstrations": sizes["solutions"], "prompts": 2000, "heldout": sizes["problems"],
            "hidden": 64, "layers": 2,
        },
        "sft": {
            "type": "sft", "model": {"path": "@tasks/config.json", "tokenizer": "@tasks/tokenizer"},
            "data": {"path": "@tasks/demonstrations.jsonl"}, "epochs": 4, "batch_size": 64,
            "optim": {"lr": 3e-3, "warmup_ratio": 0.05}, "loop": chain.QUIET,
        },
    }  # fmt: skip


def stages(values: Mapping[str, Any], solver: Path, sizes: Mapping[str, int]) -> dict[str, Any]:
    """RL with a verifier where the arm has it, and the error of the next step.

    Args:
        values: ``trained``, "sft" or "rl", and for "rl" ``rate``, the learning rate.
        solver: Folder of ``solver_stages``.
        sizes: ``solver_steps``, of 64 completions each.
    """
    model, learning = str(solver / "sft" / "model"), {}
    if values["trained"] == "rl":
        learning = {
            "rl": {
                "type": "rl", "model": {"path": model},
                "data": {"path": str(solver / "tasks" / "prompts.jsonl")}, "rewards": [chain.VERIFIER],
                "method": {"type": "reinforce"}, "sampling": SAMPLING,
                "steps": sizes["solver_steps"], "batch_size": 64, "loop": chain.QUIET,
                "optim": {"lr": values["rate"], "warmup_ratio": 0.1, "lr_scheduler_type": "constant"},
            }
        }  # fmt: skip
        model = "@rl/model"
    return {
        **learning,
        "prefixes": {
            "type": "prefix-error", "models": {"policy": {"path": model}},
            "data": str(solver / "tasks" / "heldout.jsonl"), "num_completions": 8,
            "sampling": SAMPLING,
        },
    }  # fmt: skip


def read(folder: Path) -> dict[str, Measure]:
    """The measures of an arm, from the summary of ``trimtab prefix-error``.

    A difference of two errors is 0 where one of the prefixes never occurred: a model that makes no error
    pays for none. The error itself is then 1: only a model without a right step has no right prefix.
    """
    summary = read_object(folder / "prefixes" / "summary.json")["policy"]
    absent = {"differences": 0.0, "errors": 1.0}
    return {
        name: Measure(float(summary[table].get(key, {"mean": absent[table]})["mean"]))
        for name, (table, key) in MEASURES.items()
    }
