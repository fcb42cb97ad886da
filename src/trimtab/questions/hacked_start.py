"""What question 7 starts from, and the stages of its arms.

Two worlds: digests whose labels pay for keywords and length, and the usual prompts with few labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.questions import chain
from trimtab.questions.arm_stages import compare, rl
from trimtab.questions.claim import Settings

MEMBERS = 4
"""Reward models of an ensemble: other heads and other orders of the same labels."""
KEYWORDS = {"name": "keywords", "function": "trimtab.sandbox.faults:keyword_reward"}


def make(folder: Path, seed: int, settings: Settings, starts: Path) -> None:
    """Make both worlds and write where they are to ``places.json`` in ``folder``."""
    sizes = settings.sizes
    digest = chain.shared(starts, "digest", digest_stages(seed, settings), seed)
    own = {k.removeprefix("few_"): n for k, n in sizes.items() if k.startswith("few_")}
    few = chain.sandbox(starts, seed, own)
    comparisons = {"path": "@few/label/comparisons.jsonl", "limit": own["reward_rows"]}
    members = ensemble(seed, comparisons, "@few/label/heldout.jsonl")
    few_models = chain.shared(starts, "members", members, seed, {"few": few})
    places = {"digest": digest, "digest_models": digest, "few": few, "few_models": few_models}
    chain.write_places(folder, places)


def ensemble(seed: int, data: Mapping[str, Any], eval_data: str | None) -> dict[str, Any]:
    """The members, called "0", "1", …"""
    return {
        f"m{k}": chain.reward_stage(
            data, eval_data, model={"path": chain.BASE, "seed": 100 * seed + k},
            loop={**chain.QUIET, "seed": 100 * seed + k},
        )
        for k in range(MEMBERS)
    }  # fmt: skip


def digest_stages(seed: int, settings: Settings) -> dict[str, dict[str, Any]]:
    """World of digests, SFT, labels by keywords, by care and by brevity, and reward models of each."""
    sizes, options = settings.sizes, settings.options
    stages = chain.sandbox_stages(seed, {**sizes, "reward_rows": sizes["labels"]})
    for name in ("world", "fresh"):
        stages[name]["kinds"] = ["digest"]
    del stages["label"], stages["reward"]
    stages["sample"] = sample("@sft/model", sizes["labels"], settings)
    labelled = {"data": "@sample/items.jsonl", "tokenizer": chain.BASE, "draw": True, "scale": 8.0}
    labellers = {
        "keywords": KEYWORDS,
        "careful": chain.GOLD,
        "brief": {**chain.GOLD, "name": "concise", "options": {"part": "concise"}},
    }
    for name, reward in labellers.items():
        stages[f"label_{name}"] = {"type": "reward-labels", "rewards": [reward], **labelled}
    paid = {"path": "@label_keywords/rows.jsonl"}
    stages |= ensemble(seed, paid, None)
    for name in ("careful", "brief"):
        stages[name] = chain.reward_stage({"path": f"@label_{name}/rows.jsonl"})
    stages["steps"] = {
        "type": "function", "function": "trimtab.sandbox.hacked_cases:step_rows",
        "options": {"items": ["@sample/items.jsonl"], "limit": sizes["step_labels"]},
    }  # fmt: skip
    stages["process"] = {
        "type": "process", "model": {"path": chain.BASE}, "separator": options["separator"],
        "epochs": 4, "batch_size": 16, "data": {"path": "@steps/rows.jsonl"},
        "optim": {"lr": 5e-4, "warmup_ratio": 0.1}, "loop": chain.QUIET,
    }  # fmt: skip
    return stages


def sample(model: str, prompts: int, settings: Settings) -> dict[str, Any]:
    """Completions of a model to prompts that are for labels."""
    return {
        "type": "sample", "model": {"path": model}, "num_completions": 4, "tries": 2,
        "data": {"path": "@world/prompts.jsonl", "limit": prompts}, "keep_truncated": True,
        "sampling": settings.options["sampling"],
    }  # fmt: skip


def reward_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """The reward model of an arm, or its ensemble."""
    combine = values.get("combine", "one")
    if combine == "one":
        return {"name": "model", "model": f"@models/{values.get('reward', 'm0')}/model"}
    members = [f"@models/m{k}/model" for k in range(MEMBERS)]
    return {"name": "model", "models": members, "combine": combine}


def stages(values: Mapping[str, Any], settings: Settings) -> dict[str, dict[str, Any]]:
    """The stages of an arm: where it relabels, hacked cases and a new reward model; RL; comparison."""
    reward = reward_of(values)
    second = {"name": "second", "model": "@start/brief/model"}
    rewards = [reward, second] if values.get("second") else [reward]
    arm_stages: dict[str, dict[str, Any]] = {}
    if "relabel" in values:
        arm_stages = relabelled(values, settings)
        rewards = [{"name": "model", "model": "@refreshed/model"}, *rewards[1:]]
    stage = rl(values, settings, [] if values.get("only_process") else rewards)
    if "process" in values:
        stage["process"] = {"model": "@start/process/model", **values["process"]}
        stage["process"]["separator"] = settings.options["separator"]
    arm_stages["rl"] = stage
    models = {"sft": "@start/sft/model", "rl": "@rl/model"}
    recorded = [chain.GOLD, reward]
    return arm_stages | {"compare": compare(models, settings, recorded)}


def relabelled(values: Mapping[str, Any], settings: Settings) -> dict[str, dict[str, Any]]:
    """A first run that hacks the reward, labels of its completions, and a reward model that has seen them.

    "people": unbiased people compare its completions to a prompt with each other. "cases": each is a
    negative against the best completion of the start. Both spend as many pairs.
    """
    count = settings.sizes[values["labels"]]
    people = values["relabel"] == "people"
    first = rl({"lr": values["lr"]}, settings, [reward_of({})])
    first["steps"] = -(-first["steps"] // 2)
    hacked = sample("@first/model", min(2 * count, settings.sizes["labels"]), settings)
    hacked["data"] = {**hacked["data"], "path": "@start/world/prompts.jsonl"}
    hacked["num_completions"] = 2 if people else 1
    if people:
        new: dict[str, Any] = {
            "type": "reward-labels", "data": "@hacked/items.jsonl", "limit": count, "draw": True,
            "tokenizer": "@start/sft/model", "scale": 8.0,
            "rewards": [chain.GOLD],
        }  # fmt: skip
    else:
        new = {
            "type": "function", "function": "trimtab.sandbox.hacked_cases:pairs",
            "options": {"hacked": "@hacked/items.jsonl", "start": "@start/sample/items.jsonl",
                        "limit": count},
        }  # fmt: skip
    inputs = {
        "old": {"path": "@start/label_keywords/rows.jsonl"},
        "new": {"path": "@new/rows.jsonl"},
    }
    return {
        "first": first, "hacked": hacked, "new": new,
        "mixed": {"type": "mix", "inputs": inputs},
        "refreshed": chain.reward_stage({"path": "@mixed/rows.jsonl"}),
    }  # fmt: skip
