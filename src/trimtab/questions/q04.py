"""Question 4: what makes a reward model, and does its quality set the ceiling of the policy?

Reward models on more and more labels, from three starts, with half the spread of scores, and on the labels of
people who pay for words; PPO follows each of them alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.questions import chain, policy_measures, reward_measures
from trimtab.questions.claim import Settings
from trimtab.questions.experiment import Experiment, Result, mean_over_seeds
from trimtab.questions.measure import ArmResult, Measure, over_prompts, rank_correlation
from trimtab.report.charts import Chart, Line, line_chart

LEVELS = (100, 300, 1000, 3000)
STEPS = {"first": (100, 300), "second": (300, 1000), "third": (1000, 3000)}
STARTS = ("init=sft", "init=random")


def flawed_part(settings: Settings) -> Any:
    """Labels of people who pay for words, and a reward model on them."""
    options = settings.options
    rows = chain.rows_of(options["flawed_labels"], settings.sizes)
    wordy = {"name": "wordy", "length_bias": options["nats_per_word"]}
    labels = {**chain.label_stage(settings.sizes["judged"]), "model": {"path": "@start/sft/model"},
              "data": "@start/world/prompts.jsonl", "limit": rows, "panel": [wordy]}  # fmt: skip
    reward = chain.reward_stage(
        {"path": "@label/comparisons.jsonl"},
        "@label/heldout.jsonl",
        batch_size=chain.batch_of(rows),
    )
    return chain.Part("wordy", {"label": labels, "reward": reward})


def reward_part(values: Mapping[str, Any], settings: Settings) -> Any:
    """The reward model of an arm."""
    if values.get("flawed"):
        return flawed_part(settings)
    rows = chain.rows_of(values["labels"], settings.sizes)
    return chain.reward_part(rows, values.get("init", "base"))


def start(_: Path, seed: int, settings: Settings, starts: Path) -> Path:
    """World, SFT model and labels."""
    return chain.wide(starts, seed, settings.sizes)


def policy_stages(
    values: Mapping[str, Any], settings: Settings, start: Path
) -> dict[str, dict[str, Any]]:
    """PPO on the arm's reward model, and its policy on held-out prompts."""
    reward = str(reward_part(values, settings).folder(start) / "reward" / "model")
    rl = chain.ppo_stage(
        reward, settings.rate(values), settings.sizes, beta=settings.options["beta"]
    )
    model, gold = rl["rewards"]
    rl["rewards"] = [{**model, "weight": values.get("weight", 1.0)}, gold]
    compare = policy_measures.stages(
        {"path": "@rl/model"},
        settings.options,
        rewards=[{"name": "model", "model": reward}],
        baseline={"path": "@start/sft/model"},
    )
    return {"rl": rl, **compare}


def arm(out: Path, start: Path, seed: int, values: dict[str, Any], settings: Settings) -> ArmResult:
    """Train the policy of one reward model; measure both."""
    folder, options = out / "stages", settings.options
    if "labels" not in values:
        measured = policy_measures.stages({"path": "@start/sft/model"}, options)
        chain.run_stages(folder, measured, seed, {"start": start})
        return ArmResult(policy_measures.read(folder, options))
    reward_part(values, settings).make(start, seed)
    stages = policy_stages(values, settings, start)
    chain.run_stages(folder, stages, seed, {"start": start})
    measures = policy_measures.read(folder, options)
    table = policy_measures.table_of(folder, "all", options["num_completions"])
    gain = (table["model_policy"] - table["model_start"]).astype(np.float64)
    measures["own_gain"] = over_prompts(gain.mean(1))
    return ArmResult(
        measures | reward_measures.read(reward_part(values, settings).folder(start) / "reward")
    )


def derive(arms: Mapping[str, ArmResult], settings: Settings) -> dict[str, ArmResult]:
    """Each reward model with that of the next more labels, and how accuracy and gold go together."""
    derived: dict[str, ArmResult] = {}
    for step, (few, many) in STEPS.items():
        for name, labels in (("fewer", few), ("more", many)):
            gold = arms[f"reward[labels={labels}]"].measures["gold"]
            derived[f"{name}[step={step}]"] = ArmResult({"gold": gold})
    names = [*(f"reward[labels={n}]" for n in LEVELS), *STARTS]
    accuracy, gold = ([arms[n].measures[m].value for n in names] for m in ("accuracy", "gold"))
    derived["ranking"] = ArmResult({"rank": Measure(rank_correlation(accuracy, gold))})
    return derived


def figure(result: Result, words: Mapping[str, str]) -> Chart | None:
    """Gold of the policy against accuracy of its reward model."""
    names = {
        "levels": [f"reward[labels={n}]" for n in LEVELS],
        "starts": ["init=random", "reward[labels=1000]", "init=sft"],
    }
    lines: list[Line] = []
    for line, arms in names.items():
        means = [[mean_over_seeds(result, a, m) for m in ("accuracy", "gold")] for a in arms]
        x, y = zip(*sorted(means), strict=True)
        lines.append(Line(words[line], x, y))
    return line_chart(words["title"], lines, words["x"], words["y"], words["see"])


EXPERIMENT = Experiment(start, arm, figure, derive)
