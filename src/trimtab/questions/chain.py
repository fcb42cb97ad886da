"""The starts that the arms of a seed share: world, demonstrations, SFT, labels, reward model.

Each is a recipe, so it is made once, recognised by the fingerprints of its stages, and resumed when it was
killed half-way.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.runs import json_lines, read_object, to_json, write_atomic
from trimtab.runs.lock import waiting_lock
from trimtab.sandbox.arithmetic import Problem

BASE = "@sandbox/pretrained"
SAMPLING = {"max_new_tokens": 40}
GOLD = {"name": "gold", "function": "trimtab.sandbox.world:gold_reward"}
NEVER_LABELLED = 10_000
"""Added to the seed of a world: its prompts are for RL, and none of them was labelled."""
PLACES = "places.json"
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
HELD_OUT = {"names": ["gina", "hugo"], "kinds": ["opinion"]}
"""What no prompt of a wide start has: two people, and requests that begin with the user's own claim."""
FULL_LABELS = 3000
"""Ranked prompts of a wide start at full size; numbers of labels are shares of it."""
FEWEST_ROWS = 24
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
        "sft": sft_stage("@world/demonstrations.jsonl"),
        "label": label_stage(200),
        "reward": reward_stage(
            {"path": "@label/comparisons.jsonl", "limit": sizes["reward_rows"]},
            "@label/heldout.jsonl",
        ),
    }  # fmt: skip


def sft_stage(data: str, holdout: int = 50) -> dict[str, Any]:
    """SFT of the base model on demonstrations."""
    return {
        "type": "sft", "model": {"path": BASE}, "holdout": holdout, "epochs": 2, "batch_size": 64,
        "data": {"path": data}, "optim": {"lr": 5e-4, "warmup_ratio": 0.05}, "loop": QUIET,
    }  # fmt: skip


def label_stage(heldout: int) -> dict[str, Any]:
    """The panel ranks completions of the SFT model."""
    return {
        "type": "sandbox-labels", "model": {"path": "@sft/model"}, "data": "@world/prompts.jsonl",
        "heldout": heldout, "sampling": SAMPLING,
    }  # fmt: skip


def reward_stage(
    data: Mapping[str, Any], eval_data: str | None = None, **keys: Any
) -> dict[str, Any]:
    """A reward model from the base model.

    Args:
        data: Comparisons: ``path`` and perhaps ``limit``.
        eval_data: Held-out comparisons.
        keys: Of the stage, in place of those here.
    """
    evaluated = {} if eval_data is None else {"eval_data": {"path": eval_data}}
    return {
        "type": "reward", "model": {"path": BASE}, "epochs": 4, "batch_size": 16, "data": dict(data),
        "optim": {"lr": 5e-4, "warmup_ratio": 0.1}, "loop": QUIET, **evaluated, **keys,
    }  # fmt: skip


def sandbox(starts: Path, seed: int, sizes: Mapping[str, int]) -> Path:
    """Make the sandbox's start of a seed unless it is complete.

    Args:
        starts: Folder that holds the starts of all questions; equal starts are made once.

    Returns:
        Its folder: ``world``, ``fresh`` (prompts for RL), ``sft/model``, ``label``, ``reward/model``.
    """
    return shared(starts, "sandbox", sandbox_stages(seed, sizes), seed)


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
    return shared(starts, "words", word_problem_stages(sizes, task, training), seed)


def wide_stages(sizes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """The stages of a start that several numbers of labels are taken from, with held-out names and kinds.

    Args:
        sizes: ``demonstrations``, ``labels`` (ranked prompts to train on), ``judged`` (ranked prompts to
            measure reward models on), ``prompts`` (for RL, never labelled), ``heldout``.
    """
    # Prompts whose completions are all equal cannot be ranked: about one in twenty.
    ranked = math.ceil(1.1 * sizes["labels"]) + sizes["judged"]
    return {
        "world": {
            "type": "sandbox-data", "demonstrations": sizes["demonstrations"], "prompts": ranked,
            "rl_prompts": sizes["prompts"], "heldout": sizes["heldout"], "held_out": HELD_OUT,
        },
        "sft": sft_stage("@world/demonstrations.jsonl"),
        "label": label_stage(sizes["judged"]),
    }  # fmt: skip


def wide(starts: Path, seed: int, sizes: Mapping[str, int]) -> Path:
    """Make the wide start of a seed unless it is complete.

    Returns:
        Its folder: ``world`` (with ``rl_prompts.jsonl``, ``heldout-names.jsonl`` and
        ``heldout-kinds.jsonl``), ``sft/model``, ``label``.
    """
    return shared(starts, "wide", wide_stages(sizes), seed)


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
    folder = starts / f"{name}-{_digest(stages)}" / f"seed-{seed}"
    run_stages(folder, stages, seed, inputs)
    return folder


def _digest(stages: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(stages, sort_keys=True).encode()).hexdigest()[:10]


@dataclass(frozen=True, slots=True)
class Part:
    """Stages that several questions build on a start, such as a reward model; equal ones are made once."""

    name: str
    stages: Mapping[str, dict[str, Any]]
    """They refer to the start as "@start"."""

    def folder(self, start: Path) -> Path:
        """Where it is, made or not: within the start."""
        return start / f"{self.name}-{_digest(self.stages)}"

    def make(self, start: Path, seed: int) -> Path:
        """Run what is missing of it, or wait for the process that does; its folder."""
        folder = self.folder(start)
        with waiting_lock(start / f"{folder.name}.lock"):
            run_stages(folder, self.stages, seed, {"start": start})
        return folder


def rows_of(labels: int, sizes: Mapping[str, int]) -> int:
    """Ranked prompts that ``labels`` stands for, which is their number at full size.

    >>> rows_of(300, {"labels": 3000}), rows_of(300, {"labels": 300})
    (300, 30)
    """
    return max(FEWEST_ROWS, round(labels * sizes["labels"] / FULL_LABELS))


def batch_of(rows: int) -> int:
    """Ranked prompts per update: about twenty updates per pass, between 8 and 64 prompts.

    >>> batch_of(100), batch_of(300), batch_of(3000)
    (8, 16, 64)
    """
    return 2 ** min(6, max(3, round(math.log2(rows / 20))))


def initial_model(init: str) -> dict[str, Any]:
    """The model that training begins with.

    Args:
        init: "base", "sft", or "random": the base model's architecture with random weights.
    """
    if init == "random":
        return {"path": f"{BASE}/config.json", "tokenizer": BASE}
    return {"path": {"base": BASE, "sft": "@start/sft/model"}[init]}


def reward_part(rows: int, init: str = "base") -> Part:
    """A reward model on the first ``rows`` ranked prompts of a wide start: ``reward/model``."""
    stage = reward_stage(
        {"path": "@start/label/comparisons.jsonl", "limit": rows}, "@start/label/heldout.jsonl",
        batch_size=batch_of(rows), model=initial_model(init),
    )  # fmt: skip
    return Part(f"reward-{init}-{rows}", {"reward": stage})


def ppo_stage(
    reward: str, lr: float, sizes: Mapping[str, int], *, beta: float, steps: float = 1.0
) -> dict[str, Any]:
    """PPO on a reward model, from the SFT model, on prompts that were never labelled.

    Args:
        reward: Folder of the reward model, which is also the critic's start.
        sizes: ``steps`` (batches) and ``batch`` (completions of as many prompts).
        beta: KL coefficient.
        steps: Factor of their number.
    """
    return {
        "type": "rl", "model": {"path": "@start/sft/model"},
        "data": {"path": "@start/world/rl_prompts.jsonl"},
        "rewards": [{"name": "model", "model": reward}, {**GOLD, "weight": 0}],
        "critic": {"type": "separate", "model": {"path": reward}, "optim": {"lr": 3e-4}},
        "method": {"type": "ppo", "updates": {"epochs": 2, "minibatches": 2},
                   "length": {"missing_eos_penalty": 1.0}, "kl": {"beta": beta}},
        "sampling": SAMPLING, "steps": round(steps * sizes["steps"]), "batch_size": sizes["batch"],
        "optim": {"lr": lr, "lr_scheduler_type": "constant"}, "loop": QUIET,
    }  # fmt: skip


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
    from trimtab.launch import recipe as recipes  # here, because pages need no torch

    places = {name: str(path) for name, path in (inputs or {}).items()}
    recipe = recipes.Recipe(out=str(folder), seed=seed, inputs=places, stages=dict(stages))
    recipes.run(recipe, f"the stages of {folder}")


def write_places(folder: Path, places: Mapping[str, Path]) -> None:
    """Note in a start's folder where the starts are that it consists of."""
    text = to_json({name: str(path) for name, path in places.items()})
    write_atomic(folder / PLACES, text.encode())


def read_places(folder: Path) -> dict[str, Path]:
    """What ``write_places`` noted."""
    return {name: Path(path) for name, path in read_object(folder / PLACES).items()}


def split_by_steps(file: Path, steps: Sequence[int]) -> None:
    """Write the problems of ``file`` that have n calculations to ``NAME-n.jsonl`` next to it, for each n."""
    rows = [line for _, line in json_lines(file.read_bytes())]
    counts = [len(Problem.from_json(json.loads(row)["problem"]).changes) for row in rows]
    for n in steps:
        part = b"".join(row + b"\n" for row, count in zip(rows, counts, strict=True) if count == n)
        write_atomic(file.with_name(f"{file.stem}-{n}.jsonl"), part)
