"""The recipe stages of question 12: learned rewards, arms that learn, arms whose advantages are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.questions import chain
from trimtab.questions.claim import Settings

LEARNED = "learned"
"""Name of the process reward model's scores."""
SEPARATOR = ";"
VALUES = "trimtab.sandbox.word_problems:step_values"
CONSTANT = {"lr_scheduler_type": "constant", "warmup_ratio": 0.1}


def learned_stages(settings: Settings) -> dict[str, dict[str, Any]]:
    """The stages of the learned rewards: step labels from continuations alone, pairs from the verifier."""
    sizes, options = settings.sizes, settings.options
    prompts = f"@start/tasks/prompts-{options['learn_steps']}.jsonl"
    sft = {"path": "@start/sft/model"}
    sampling = {"max_new_tokens": options["learn_tokens"]}
    optim = {"lr": 1e-3, "warmup_ratio": 0.1}
    return {
        "labels": {
            "type": "step-labels", "model": sft, "data": {"path": prompts, "limit": sizes["labelled"]},
            "rewards": [chain.VERIFIER], "solutions": 4, "continuations": 8, "label": "soft",
            "separator": SEPARATOR, "sampling": sampling,
        },
        "process": {
            "type": "process", "model": sft, "data": {"path": "@labels/steps.jsonl"}, "holdout": 40,
            "epochs": 3, "separator": SEPARATOR, "batch_size": 32, "optim": optim,
        },
        "pairs": {
            "type": "best-of-n", "model": sft, "data": {"path": prompts, "limit": sizes["labelled"]},
            "rewards": [chain.VERIFIER], "num_completions": 8, "sampling": sampling,
        },
        "dpo": {
            "type": "dpo", "model": sft, "data": {"path": "@pairs/pairs.jsonl"}, "epochs": 2,
            "batch_size": 16, "objective": {"beta": options["beta"]},
            "optim": {"lr": 3e-4, "warmup_ratio": 0.1},
        },
    }  # fmt: skip


def own_rewards(rewards_BT: Any, mask_BT: Any, final_B: Any, group_B: Any) -> Any:
    """The advantage of a token is its own reward [B, T], without those that follow."""
    return rewards_BT


def rewards_of(reward: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of ``rl`` by which arms that learn differ; the verifier is recorded in all of them."""
    unpaid = {"rewards": [{**chain.VERIFIER, "weight": 0}]}
    model = {"name": LEARNED, "model": "@start/credit/process/model", "separator": SEPARATOR}
    values = {"function": VALUES, "options": {"wrong": options["wrong"]}, "separator": SEPARATOR}
    each = {**values, "unit": "token", "options": {"wrong": options["wrong"], "joint": " "}}
    return {
        "outcome": {"rewards": [chain.VERIFIER], "process": {**model, "weight": 0}},
        "critic": {"rewards": [chain.VERIFIER]},
        "token": {**unpaid, "process": each},
        "own": {**unpaid, "process": each},
        "step": {**unpaid, "process": values},
        "learned": {**unpaid, "process": model},
        "counted": {**unpaid, "process": {**model, "dense": "raw"}},
        "summed": {"rewards": [chain.VERIFIER], "process": {**model, "dense": "none"}},
        "implicit": {**unpaid, "implicit": {
            "model": "@start/credit/dpo/model", "reference": "@start/sft/model",
            "beta": options["beta"],
        }},
    }[reward]  # fmt: skip


def learning_stages(values: Mapping[str, Any], settings: Settings) -> dict[str, dict[str, Any]]:
    """The stages of an arm that learns: RL, and its policy on held-out problems."""
    sizes, options = settings.sizes, settings.options
    reward, steps = str(values["reward"]), options["learn_steps"]
    advantage: dict[str, Any] = {"estimator": "returns", "baseline": "group", "scale": "none"}
    if reward == "own":
        advantage["estimator"] = f"{__name__}:own_rewards"
    if reward == "critic":
        advantage = {"estimator": "gae", "baseline": "none", "scale": "none", "lam": 0.95}
    stage: dict[str, Any] = {
        "type": "rl", "model": {"path": "@start/sft/model"},
        "data": {"path": f"@start/tasks/prompts-{steps}.jsonl"}, **rewards_of(reward, options),
        "method": {"type": "grpo", "group_size": options["group_size"], "kl": {"place": "none"},
                   "advantage": {**advantage, "whiten": True}},
        "sampling": {"max_new_tokens": options["learn_tokens"]}, "steps": sizes["iterations"],
        "batch_size": sizes["batch"], "loop": chain.QUIET,
        "optim": {"lr": values["lr"], **CONSTANT},
    }  # fmt: skip
    if reward == "critic":
        stage["critic"] = {"optim": {"lr": 1e-3, **CONSTANT}}
    return {
        "rl": stage,
        "compare": {
            "type": "compare", "models": {"rl": {"path": "@rl/model"}}, "rewards": [chain.VERIFIER],
            "data": f"@start/tasks/heldout-{steps}.jsonl", "num_completions": 4, "pass_at": [1],
            "sampling": {"max_new_tokens": options["learn_tokens"]}, "html": False,
        },
    }  # fmt: skip


def advantage_stages(values: Mapping[str, Any], settings: Settings) -> dict[str, dict[str, Any]]:
    """The stage of an arm whose advantages are compared with the truth, at the SFT model."""
    sizes, options = settings.sizes, settings.options
    estimator = str(values["estimator"])
    method: dict[str, Any] = {"type": "grpo", "kl": {"place": "none"}}
    stage: dict[str, Any] = {
        "type": "step-advantages", "model": {"path": "@start/sft/model"}, "rewards": [chain.VERIFIER],
        "data": {"path": f"@start/tasks/prompts-{values['steps']}.jsonl"}, "separator": SEPARATOR,
        "prompts": sizes["measured"], "completions": 4, "batch_size": sizes["critic_batch"],
        "sampling": {"max_new_tokens": options["tokens"]}, "optim": {"lr": 1e-12},
    }  # fmt: skip
    if estimator == "critic":
        method |= {"group_size": 1, "advantage": {
            "estimator": "gae", "baseline": "none", "scale": "none", "lam": 0.95,
        }}  # fmt: skip
        stage |= {
            "critic_batches": sizes["critic_batches"], "lams": options["lams"],
            "critic": {"optim": {"lr": 1e-3, **CONSTANT}},
        }  # fmt: skip
    if estimator == LEARNED:
        model = {"name": LEARNED, "model": "@start/credit/process/model", "separator": SEPARATOR}
        stage["process"] = {**model, "weight": 0}
    if estimator == "monte-carlo":
        method |= {"advantage": {"estimator": "gae", "values": "monte-carlo", "baseline": "none",
                                 "scale": "none"}}  # fmt: skip
        stage["monte_carlo"] = {"k": options["continuations"], "separator": SEPARATOR}
    return {"advantages": {**stage, "method": method}}
