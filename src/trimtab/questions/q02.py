"""Question 2: what does each of the three stages do?

PPO with one reward model from random weights, from the base model, and after SFT on few and on all
demonstrations; reward models from three starts; RL on labelled and on new prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.questions import chain, policy_measures, reward_measures
from trimtab.questions.claim import Settings
from trimtab.questions.experiment import Experiment, Result, mean_over_seeds
from trimtab.questions.measure import ArmResult, Measure, over_prompts
from trimtab.report.charts import Bar, Chart, grouped_bars
from trimtab.runs import read_object

STARTS = ("random", "base", "few", "sft")


def few_part(settings: Settings) -> Any:
    """SFT on a tenth of the demonstrations, in as many updates as on all of them."""
    share = settings.options["few"]
    rows = max(chain.FEWEST_ROWS, round(share * settings.sizes["demonstrations"]))
    sft = chain.sft_stage("@start/world/demonstrations.jsonl", holdout=0)
    data = {**sft["data"], "limit": rows}
    epochs = round(sft["epochs"] * settings.sizes["demonstrations"] / rows)
    return chain.Part("few", {"sft": {**sft, "data": data, "epochs": epochs}})


def reward_part(init: str, settings: Settings) -> Any:
    """A reward model from one of three starts."""
    return chain.reward_part(chain.rows_of(settings.options["reward_labels"], settings.sizes), init)


def start(_: Path, seed: int, settings: Settings, starts: Path) -> Path:
    """World, SFT model and labels."""
    return chain.wide(starts, seed, settings.sizes)


def parts_of(values: Mapping[str, Any], settings: Settings) -> list[Any]:
    """What an arm needs besides: the SFT model on few demonstrations, and a reward model."""
    if "init" in values:
        return [reward_part(values["init"], settings)]
    few = [few_part(settings)] if values["start"] == "few" else []
    return [*few, *([reward_part("base", settings)] if "lr" in values else [])]


def origin(name: str, settings: Settings, start: Path) -> dict[str, Any]:
    """The model that RL begins with."""
    if name == "few":
        return {"path": str(few_part(settings).folder(start) / "sft" / "model")}
    return chain.initial_model(name)


def stages(values: Mapping[str, Any], settings: Settings, start: Path) -> dict[str, dict[str, Any]]:
    """RL where the arm has it, its policy on held-out prompts, and new labels where it asks for them."""
    options, first = settings.options, origin(values["start"], settings, start)
    if "lr" not in values:
        return policy_measures.stages(first, options)
    reward = str(reward_part("base", settings).folder(start) / "reward" / "model")
    rl = chain.ppo_stage(reward, values["lr"], settings.sizes, beta=options["beta"])
    labelled = chain.rows_of(options["reward_labels"], settings.sizes) + settings.sizes["judged"]
    prompts = {"new": "rl_prompts", "labelled": "prompts"}[values.get("prompts", "new")]
    rl |= {
        "model": first,
        "data": {"path": f"@start/world/{prompts}.jsonl", "limit": labelled},
    }
    model = {"name": "model", "model": reward}
    planned = {
        "rl": rl,
        **policy_measures.stages({"path": "@rl/model"}, options, rewards=[model], baseline=first),
    }
    if values.get("relabel"):
        planned["relabel"] = {
            **chain.label_stage(1), "model": {"path": "@rl/model"},
            "data": "@start/world/rl_prompts.jsonl", "limit": 2 * settings.sizes["judged"],
        }  # fmt: skip
        planned["accuracy"] = {
            "type": "accuracy", "tokenizer": chain.BASE, "rewards": [model],
            "data": {"old": {"path": "@start/label/heldout.jsonl"},
                     "new": {"path": "@relabel/comparisons.jsonl"}},
        }  # fmt: skip
    return planned


def arm(out: Path, start: Path, seed: int, values: dict[str, Any], settings: Settings) -> ArmResult:
    """Train one arm and measure it."""
    for part in parts_of(values, settings):
        part.make(start, seed)
    if "init" in values:
        return ArmResult(
            reward_measures.read(reward_part(values["init"], settings).folder(start) / "reward")
        )
    folder, options = out / "stages", settings.options
    chain.run_stages(folder, stages(values, settings, start), seed, {"start": start})
    measures = policy_measures.read(folder, options)
    if "lr" in values:
        table = policy_measures.table_of(folder, "all", options["num_completions"])
        gain = (table["model_policy"] - table["model_start"]).astype(np.float64)
        measures["own_gain"] = over_prompts(gain.mean(1))
        measures["kl"] = over_prompts(table["kl_policy"].astype(np.float64).mean(1))
    if values.get("relabel"):
        accuracy = read_object(folder / "accuracy" / "summary.json")["model"]
        measures["kept"] = Measure(reward_measures.share_kept(accuracy, "new", "old"))
    return ArmResult(measures)


def figure(result: Result, words: Mapping[str, str]) -> Chart | None:
    """Gold before and after RL, by start."""
    groups = {
        words[name]: [
            Bar(words[when], mean_over_seeds(result, f"{when}[start={name}]", "gold"), colour=c)
            for c, when in enumerate(("before", "rl"))
        ]
        for name in STARTS
    }  # fmt: skip
    return grouped_bars(words["title"], groups, words["y"], words["see"])


EXPERIMENT = Experiment(start, arm, figure)
