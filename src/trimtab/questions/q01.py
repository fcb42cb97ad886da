"""Question 1: what does RLHF solve that SFT does not?

SFT on demonstrations and on first-ranked completions, DPO, and PPO with a reward model of the same labels;
two groups of users with opposite tastes; and, on word problems, what a model's own errors cost it later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.questions import chain, exposure, policy_measures
from trimtab.questions.claim import Settings
from trimtab.questions.experiment import Experiment, Result, mean_over_seeds
from trimtab.questions.measure import ArmResult, Measure, combined, over_prompts
from trimtab.report.charts import Bar, Chart, grouped_bars

SETS = ("all", "names", "kinds")
GROUPS = ("warm", "plain")
"""Users who want politeness, and users who do not."""
FIGURE = {
    "sft": "demonstrations[chosen=all]",
    "best": "demonstrations[chosen=best]",
    "first": "first[labels=3000]",
    "dpo": "dpo[labels=3000]",
    "ppo": "ppo[labels=3000]",
}


def person(group: str, settings: Settings) -> dict[str, Any]:
    """An annotator of a group: the same but for what a polite phrase is worth."""
    taste = settings.options["taste"] * (1 if group == "warm" else -1)
    return {"name": group, "group": group, "format_bias": taste}


def taste_part(groups: Sequence[str], settings: Settings) -> Any:
    """Labels of groups, as many prompts whether there are one or two of them."""
    rows = chain.rows_of(settings.options["taste_labels"], settings.sizes)
    stage = {**chain.label_stage(1), "model": {"path": "@start/sft/model"},
             "data": "@start/world/prompts.jsonl", "limit": rows,
             "panel": [person(g, settings) for g in groups]}  # fmt: skip
    return chain.Part(f"taste-{'-'.join(groups)}", {"label": stage})


def solver_part(settings: Settings) -> Any:
    """Word problems and the model that was trained on their solutions."""
    return chain.Part("solver", exposure.solver_stages(settings.sizes))


def start(_: Path, seed: int, settings: Settings, starts: Path) -> Path:
    """World, SFT model and labels."""
    return chain.wide(starts, seed, settings.sizes)


def parts_of(values: Mapping[str, Any], settings: Settings) -> list[Any]:
    """What an arm needs besides: a reward model, the labels of groups, or the solver of word problems."""
    if values["train"] == "solver":
        return [solver_part(settings)]
    if values["train"] == "ppo":
        return [chain.reward_part(chain.rows_of(values["labels"], settings.sizes))]
    return [taste_part(values["groups"], settings)] if "groups" in values else []


def stages(
    values: Mapping[str, Any], settings: Settings, start: Path, seed: int
) -> tuple[dict[str, dict[str, Any]], str]:
    """The stages that train an arm, and the folder of its policy."""
    way, options = values["train"], settings.options
    if way == "none":
        return {}, "@start/sft/model"
    if way == "share":  # as many updates as the start's SFT on all demonstrations
        share = options["share"]
        choice = {
            "demonstrations": "@start/world",
            "share": share,
            "by": values["by"],
            "seed": seed,
        }
        sft = chain.sft_stage("@chosen/demonstrations.jsonl", holdout=0)
        return {
            "chosen": {"type": "function", "options": choice,
                       "function": "trimtab.questions.chosen_demonstrations:choose"},
            "train": {**sft, "epochs": round(sft["epochs"] / share)},
        }, "@train/model"  # fmt: skip
    rows = chain.rows_of(values["labels"], settings.sizes)
    if way == "ppo":
        [part] = parts_of(values, settings)
        reward = str(part.folder(start) / "reward" / "model")
        beta = options["beta"]
        stage = chain.ppo_stage(reward, settings.rate(values), settings.sizes, beta=beta)
        return {"train": stage}, "@train/model"
    labels = "@start/label"
    if "groups" in values:
        [part] = parts_of(values, settings)
        labels = str(part.folder(start) / "label")
    offline: dict[str, Any] = {
        "model": {"path": "@start/sft/model"}, "epochs": options["epochs"],
        "batch_size": chain.batch_of(rows), "loop": chain.QUIET,
        "optim": {"lr": settings.rate(values), "warmup_ratio": 0.1},
    }  # fmt: skip
    data = f"{labels}/comparisons.jsonl"
    if way == "dpo":
        objective = {"type": "dpo", "beta": options["dpo_beta"]}
        dpo = {"type": "dpo", **offline, "data": {"path": data, "limit": rows}}
        return {"train": {**dpo, "objective": objective}}, "@train/model"
    return {
        "first": {"type": "first-ranked", "data": data, "limit": rows},
        "train": {"type": "sft", **offline, "data": {"path": "@first/demonstrations.jsonl"}},
    }, "@train/model"


def arm(out: Path, start: Path, seed: int, values: dict[str, Any], settings: Settings) -> ArmResult:
    """Train one arm and measure its policy."""
    folder = out / "stages"
    for part in parts_of(values, settings):
        part.make(start, seed)
    if values["train"] == "solver":
        solver = solver_part(settings).folder(start)
        chain.run_stages(folder, exposure.stages(values, solver, settings.sizes), seed)
        return ArmResult(exposure.read(folder))
    options = settings.options
    wanted = values.get("serves", ())
    sets = ("all",) if "groups" in values else SETS
    tastes = [
        {"name": g, "function": "trimtab.sandbox.annotators:utility_reward",
         "options": {"person": person(g, settings)}}
        for g in wanted
    ]  # fmt: skip
    training, model = stages(values, settings, start, seed)
    measured = policy_measures.stages({"path": model}, options, sets, rewards=tastes)
    chain.run_stages(folder, {**training, **measured}, seed, {"start": start})
    measures = policy_measures.read(folder, options, sets)
    if wanted:
        table = policy_measures.table_of(folder, "all", options["num_completions"])
        utility = np.mean([table[f"{g}_policy"].mean(1) for g in wanted], axis=0)
        measures["satisfaction"] = over_prompts(utility / options["nats_per_point"])
    for name in set(sets) - {"all"}:
        fall = measures["gold"].value - measures[f"gold_{name}"].value
        measures[f"drop_{name}"] = Measure(fall)
    return ArmResult(measures)


def derive(arms: Mapping[str, ArmResult], settings: Settings) -> dict[str, ArmResult]:
    """How well users are served where each group has a policy of its own."""
    served = {
        name: [arms[f"{way} {g}"].measures["satisfaction"] for g in GROUPS]
        for name, way in (("own policies", "dpo"), ("imitation", "first"))
    }
    return {
        name: ArmResult({"satisfaction": combined(of, lambda m: m.mean(0))})
        for name, of in served.items()
    }


def figure(result: Result, words: Mapping[str, str]) -> Chart | None:
    """The parts of gold by way of training."""
    groups = {
        words[name]: [
            Bar(words[part], mean_over_seeds(result, arm_name, part), colour=colour)
            for colour, part in enumerate(policy_measures.PARTS)
        ]
        for name, arm_name in FIGURE.items()
    }
    return grouped_bars(words["title"], groups, words["y"], words["see"])


EXPERIMENT = Experiment(start, arm, figure, derive)
