"""Question 5: why PPO, and why a KL penalty?

Estimators of the policy gradient, epochs and clip, token-level Q-learning on word problems; the penalty on the
sandbox under a weak and a better reward model and under the exact score. Every word-problem arm draws as many
completions of as many prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.questions import chain
from trimtab.questions import word_problem_arms as word_arms
from trimtab.questions.arm_stages import read_answers
from trimtab.questions.claim import Settings
from trimtab.questions.experiment import Experiment, Result, mean_over_seeds
from trimtab.questions.measure import ArmResult, Measure, over_prompts
from trimtab.report.charts import Bar, Chart, grouped_bars
from trimtab.runs import read_summary

ESTIMATORS = ("reinforce", "batch mean", "leave one out", "group", "critic", "ppo")
REWARDS = {"weak": "@labelled/reward/model", "better": "@start/better/model"}
Stages = dict[str, dict[str, Any]]


def start(out: Path, seed: int, settings: Settings, starts: Path) -> Path:
    """Word problems, the same with larger vocabularies, the sandbox, and a reward model on all its labels."""
    sizes, options = settings.sizes, settings.options
    problems = {k: sizes[k] for k in ("demonstrations", "prompts", "heldout")}
    small = {**problems, "demonstrations": sizes["small_demonstrations"]}
    places = {"words": chain.word_problems(starts, seed, problems)}
    for size in options["vocabularies"]:
        places[f"vocabulary-{size}"] = chain.word_problems(
            starts, seed, small, task={**options["small_task"], "vocabulary": size},
            training=options["small_training"],
        )  # fmt: skip
    sandbox_sizes = {
        "demonstrations": sizes["sandbox_demonstrations"], "labels": sizes["labels"],
        "reward_rows": sizes["reward_rows"], "prompts": sizes["sandbox_prompts"],
        "heldout": sizes["sandbox_heldout"],
    }  # fmt: skip
    places["labelled"] = chain.sandbox(starts, seed, sandbox_sizes)
    better = chain.sandbox_stages(seed, sandbox_sizes)["reward"]
    better |= {
        "data": {"path": "@labelled/label/comparisons.jsonl"},
        "eval_data": {"path": "@labelled/label/heldout.jsonl"},
    }
    chain.run_stages(out, {"better": better}, seed, {"labelled": places["labelled"]})
    chain.write_places(out, places)
    return out


def stages(values: Mapping[str, Any], settings: Settings) -> Stages:
    """The stages of an arm."""
    sizes, options = settings.sizes, settings.options
    completions: int = options["completions"]
    if "reward" in values:
        return _reward_stages(values, settings)
    if "vocabulary" in values:
        place = f"@vocabulary-{values['vocabulary']}"
        model, limit = f"{place}/sft/model", options["small_sampling"]
        return {
            "rl": word_arms.rl_stage(
                values["method"], values["lr"], sizes["vocabulary_steps"], completions, model=model,
                data=f"{place}/tasks/prompts.jsonl", sampling=limit,
            ),
            "compare": word_arms.compare_stage(
                model=model, data=f"{place}/tasks/heldout.jsonl", sampling=limit
            ),
        }  # fmt: skip
    noise: Stages = {}
    if values.get("noise"):
        noise["noise"] = word_arms.noise_stage(
            values["method"],
            values["lr"],
            completions,
            sizes["noise_batches"],
            sizes["critic_batches"],
        )
    rl = word_arms.rl_stage(values["method"], values["lr"], sizes["steps"], completions)
    return {**noise, "rl": rl, "compare": word_arms.compare_stage()}


def _reward_stages(values: Mapping[str, Any], settings: Settings) -> Stages:
    """RL on the sandbox under one of three rewards; gold is measured under all of them."""
    sizes, options = settings.sizes, settings.options
    watched = {**chain.GOLD, "weight": 0}
    exact = values["reward"] == "exact"
    rewards = (
        [chain.GOLD] if exact else [{"name": "model", "model": REWARDS[values["reward"]]}, watched]
    )
    return {
        "rl": {
            "type": "rl", "model": {"path": "@labelled/sft/model"},
            "data": {"path": "@labelled/fresh/prompts.jsonl"}, "rewards": rewards,
            "method": {"type": "rloo", "group_size": options["group_size"],
                       "kl": {"place": "sequence", "beta": values["beta"]}},
            "sampling": chain.SAMPLING, "steps": sizes["sandbox_steps"], "batch_size": sizes["sandbox_batch"],
            "optim": {"lr": values["lr"], "lr_scheduler_type": "constant"}, "loop": chain.QUIET,
        },
        "compare": {
            "type": "compare", "baseline": "sft", "fluency": {"path": chain.BASE},
            "models": {"sft": {"path": "@labelled/sft/model"}, "rl": {"path": "@rl/model"}},
            "data": "@labelled/world/heldout.jsonl", "rewards": [chain.GOLD],
            "num_completions": word_arms.PER_PROMPT, "sampling": chain.SAMPLING, "html": False,
        },
    }  # fmt: skip


def arm(out: Path, start: Path, seed: int, values: dict[str, Any], settings: Settings) -> ArmResult:
    """Train one arm and measure its policy."""
    places = chain.read_places(start)
    folder = out / "stages"
    chain.run_stages(folder, stages(values, settings), seed, {**places, "start": start})
    if "reward" in values:
        return _on_sandbox(folder)
    options = settings.options
    result = word_arms.measure(folder, options["goal"], options["completions"])
    if values.get("noise"):
        noise = word_arms.noise_of(read_summary(folder / "noise"), options["most_noise"])
        result = word_arms.with_measures(result, noise=noise)
    return result


def _on_sandbox(folder: Path) -> ArmResult:
    answers = read_answers(folder / "compare", "rl", word_arms.PER_PROMPT)
    score = over_prompts(answers.scores["gold"].mean(1))
    measures = {
        "gold": score,
        "score": score,
        "nll": over_prompts(answers.scores["nll"].mean(1)),
        "kl": over_prompts(answers.scores["kl"].mean(1)),
        "different": over_prompts(answers.different()),
    }
    return ArmResult(measures)


def derive(arms: Mapping[str, ArmResult], settings: Settings) -> dict[str, ArmResult]:
    """PPO with one update is the arm of one epoch with its clip, which cannot act there."""
    measures: dict[str, Measure] = arms["ppo"].measures
    return {name: ArmResult(measures) for name in settings.derived}


def figure(result: Result, words: Mapping[str, str]) -> Chart | None:
    """Noise of the gradient and gain of each estimator."""
    groups = {
        words[name]: [
            Bar(words[metric], mean_over_seeds(result, name, metric), colour=colour)
            for colour, metric in enumerate(("noise", "gain"))
        ]
        for name in ESTIMATORS
    }
    return grouped_bars(words["title"], groups, words["y"], words["see"])


EXPERIMENT = Experiment(start, arm, figure, derive)
