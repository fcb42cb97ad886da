"""Configurations of runs that take a few seconds, one for each trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support import folders

FOLDERS = Path(folders.__file__)
STAGES = ("sft", "reward", "dpo", "rl", "dapo", "judged", "online_dpo")
"""PPO is "rl"; GRPO with a judge behind an endpoint is "judged"."""


def small_run(stage: str, base: Path, out: Path) -> dict[str, Any]:
    """The configuration of a run of a few seconds, in ``out``, from the files of ``every_file(base)``."""
    model = {"path": str(base / "model"), "device": "cpu"}
    loop = {"save_steps": 2, "token_budget": 512}
    if stage == "sft":
        return {
            "out": str(out), "model": model, "data": {"path": str(base / "demos.jsonl")},
            "epochs": 4, "batch_size": 8, "holdout": 8, "optim": {"lr": 1e-3}, "loop": loop,
        }  # fmt: skip
    if stage in ("reward", "dpo"):
        return {
            "out": str(out), "model": model, "data": {"path": str(base / "pairs.jsonl")},
            "epochs": 4, "batch_size": 8, "holdout": 8, "optim": {"lr": 1e-3}, "loop": loop,
        }  # fmt: skip
    if stage == "online_dpo":
        return {
            "out": str(out), "model": model, "data": {"path": str(base / "prompts.jsonl")},
            "steps": 24, "batch_size": 8, "sampling": {"max_new_tokens": 8}, "optim": {"lr": 1e-3},
            "loop": loop,
            "rewards": [{"name": "j", "judge": f"{FOLDERS}:wordier"}],
        }  # fmt: skip
    methods = {
        "rl": {"type": "ppo", "updates": {"epochs": 2, "minibatches": 2},
               "kl": {"type": "adaptive", "beta": 0.1, "target": 0.5, "horizon": 50}},
        # Groups that a batch did not need wait for the next one, over a resume too.
        "dapo": {"type": "dapo", "group_size": 2},
        "judged": {"type": "grpo", "group_size": 2},
    }  # fmt: skip
    wordy = {"name": "wordy", "function": f"{FOLDERS}:wordy"}
    endpoint = "trimtab.sandbox.simulated_judge:serve"
    judge = {
        "name": "judge",
        "ai": {"endpoint": endpoint, "model": "sim", "mode": "score", "rubric": "helpful"},
    }
    return {
        "out": str(out), "model": model, "data": {"path": str(base / "prompts.jsonl")}, "steps": 16,
        "batch_size": 8, "sampling": {"max_new_tokens": 8}, "optim": {"lr": 1e-3}, "loop": loop,
        "rewards": [wordy, judge] if stage == "judged" else [wordy],
        "method": methods[stage],
    }  # fmt: skip


def command_of(stage: str) -> str:
    """The command that trains with the configuration of ``small_run``."""
    return "rl" if stage in ("dapo", "judged") else stage
