"""What question 13 starts from: completions, labels of judges and people, and reward models of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.questions import chain
from trimtab.questions.arm_stages import rl
from trimtab.questions.claim import Settings

PROBES = "trimtab.questions.judge_probes:write"


def judge(biases: Mapping[str, Any], data: str, settings: Settings, **keys: Any) -> dict[str, Any]:
    """A judge behind an endpoint; it is asked in both orders unless ``keys`` say otherwise."""
    prices = settings.options["prices"]
    return {
        "type": "judge", "endpoint": "trimtab.sandbox.simulated_judge:serve", "model": "simulated",
        "serve": dict(biases), "rubric": "hhh", "dimensions": False, "critique": False, "ties": False,
        "probabilities": True, "concurrency": 4, "order": "both", "data": data,
        "price_in": prices["in"], "price_out": prices["out"], **keys,
    }  # fmt: skip


def reward_model(rows: str) -> dict[str, Any]:
    """A reward model of one set of labels."""
    return chain.reward_stage({"path": rows}, epochs=3)


def people(labels: int) -> dict[str, Any]:
    """Labels of simulated people for the first items."""
    return {
        "type": "function", "function": "trimtab.sandbox.annotators:label_items",
        "options": {"items": "@items/items.jsonl", "limit": labels},
    }  # fmt: skip


def start_stages(seed: int, settings: Settings) -> dict[str, dict[str, Any]]:
    """The stages of the start, the same completions for everyone who labels."""
    sizes, options = settings.sizes, settings.options
    labels, many = sizes["labels"], options["more"] * sizes["labels"]
    stages = chain.sandbox_stages(seed, {**sizes, "labels": many, "reward_rows": many})
    del stages["label"], stages["reward"]
    stages["items"] = {
        "type": "sample", "model": {"path": "@sft/model"}, "num_completions": 2,
        "data": {"path": "@world/prompts.jsonl"}, "sampling": options["sampling"],
    }  # fmt: skip
    stages["probes"] = {
        "type": "function", "function": PROBES,
        "options": {"prompts": "@world/heldout.jsonl", "items": "@items/items.jsonl",
                    "limit": sizes["probes"]},
    }  # fmt: skip
    stages["people"] = people(labels)
    items = "@items/items.jsonl"
    for name, biases in options["judges"].items():
        cache = f"@judge_{name}/cache.sqlite"
        stages[f"judge_{name}"] = judge(biases, items, settings, limit=labels)
        stages[f"many_{name}"] = judge(biases, items, settings, limit=many, cache=cache)
        stages[f"voice_{name}"] = judge(biases, "@probes/voice.jsonl", settings)
    for name, strength in options["strengths"].items():
        stages[f"judge_{name}"] = judge(strength, items, settings, limit=labels)
    biased, cache = options["judges"]["biased"], "@judge_biased/cache.sqlite"
    stages["judge_once"] = judge(biased, items, settings, limit=labels, order="random", cache=cache)
    for turn in range(2):
        stages[f"repeat{turn}"] = judge(
            biased,
            items,
            settings,
            limit=sizes["repeats"],
            order="given",
            temperature=1.0,
            seed=turn,
        )
    for name in ("checks", "blind"):
        stages[f"persuade_{name}"] = judge(
            {**biased, "checks": name == "checks"}, "@probes/persuasive.jsonl", settings
        )
    for order in ("given", "both"):
        for text in ("injected", "neutral"):
            gullible = {**options["judges"]["fair"], "obeys": "anything"}
            stages[f"{text}_{order}"] = judge(
                gullible, f"@probes/{text}.jsonl", settings, order=order
            )
    for share in options["audited"]:
        name = f"audited{share}"
        stages[f"people{share}"] = people(max(options["folds"], round(labels * share / 100)))
        stages[name] = {
            "type": "calibrate", "items": "@judge_biased/items.jsonl", "audit": True,
            "judgements": "@judge_biased/judgements.jsonl", "covariates": ["length"],
            "people": f"@people{share}/judgements.jsonl", "folds": options["folds"],
            "patterns": {"voice": "of course|i hope this helps"},
        }  # fmt: skip
    for name in label_sets(settings):
        stages[f"rm_{name}"] = reward_model(f"@{name}/rows.jsonl")
    return stages


def label_sets(settings: Settings) -> list[str]:
    """The label stages whose rows train a reward model."""
    judges = [f"{kind}_{name}" for kind in ("judge", "many") for name in settings.options["judges"]]
    judges += [f"judge_{name}" for name in settings.options["strengths"]]
    return ["people", *judges, "judge_once", *(f"audited{s}" for s in settings.options["audited"])]


def generations(values: Mapping[str, Any], settings: Settings) -> dict[str, dict[str, Any]]:
    """Generations in which each reward model labels for the next, and each policy starts the next.

    The first reward model learned from the judge. Later ones see labels of the one before alone.
    """
    sizes = settings.sizes
    stages: dict[str, dict[str, Any]] = {}
    policy, model = "@start/sft/model", "@start/rm_judge_biased/model"
    for turn in range(1, settings.options["generations"] + 1):
        stage = rl(values, settings, [{"name": "model", "model": model}])
        loop = {**stage["loop"], "seed": turn}  # other prompts in each generation
        stages[f"rl{turn}"] = stage | {"model": {"path": policy}, "loop": loop}
        policy = f"@rl{turn}/model"
        if turn == settings.options["generations"] or values.get("labeller") == "first":
            continue
        stages[f"items{turn}"] = {
            "type": "sample", "model": {"path": policy}, "num_completions": 2,
            "data": {"path": "@start/world/prompts.jsonl", "limit": sizes["labels"]},
            "sampling": settings.options["sampling"],
        }  # fmt: skip
        stages[f"labels{turn}"] = {
            "type": "reward-labels", "data": f"@items{turn}/items.jsonl",
            "tokenizer": "@start/sft/model", "rewards": [{"name": "model", "model": model}],
        }  # fmt: skip
        stages[f"rm{turn}"] = reward_model(f"@labels{turn}/rows.jsonl")
        model = f"@rm{turn}/model"
    return stages
