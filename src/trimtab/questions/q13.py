"""Question 13: can an AI judge replace people, and what does it hand on?

Judges with and without a liking for their own voice label the same completions as people do. One probe, a
right completion with and without that voice, is put to judge, reward model and policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from trimtab.questions import chain
from trimtab.questions.arm_stages import Answers, compare, read_answers, rl
from trimtab.questions.claim import Settings
from trimtab.questions.experiment import Experiment, Result, mean_over_seeds
from trimtab.questions.judge_start import generations, start_stages
from trimtab.questions.measure import ArmResult, Measure, combined, over_prompts
from trimtab.report.charts import Bar, Chart, grouped_bars
from trimtab.sandbox.simulated_judge import in_voice

CHAIN = ("judge", "reward model", "policy")
STRENGTHS = ("weak", "fair", "strong")


def start(_: Path, seed: int, settings: Settings, starts: Path) -> Path:
    """World, SFT model, completions, labels and reward models."""
    return chain.shared(starts, "judges", start_stages(seed, settings), seed)


def stages(values: Mapping[str, Any], settings: Settings) -> dict[str, dict[str, Any]]:
    """The stages of an arm that trains a policy, the last of which compares it with its start."""
    if values["train"] == "rl":
        reward = {"name": "model", "model": f"@start/rm_{values['labels']}/model"}
        trained = {"policy": rl(values, settings, [reward])}
    elif values["train"] == "generations":
        trained = generations(values, settings)
    else:
        trained = direct(values, settings)
    models = {"sft": "@start/sft/model", "policy": f"@{last_stage(values, settings)}/model"}
    return trained | {"compare": compare(models, settings, [chain.GOLD])}


def last_stage(values: Mapping[str, Any], settings: Settings) -> str:
    """The stage that trains the policy which is measured."""
    several = values["train"] == "generations"
    return f"rl{settings.options['generations']}" if several else "policy"


def direct(values: Mapping[str, Any], settings: Settings) -> dict[str, dict[str, Any]]:
    """DPO on a judge's labels, or SFT on the completions that it ranked first."""
    rows = f"@start/{values['labels']}/rows.jsonl"
    common = {"model": {"path": "@start/sft/model"}, "batch_size": 16, "loop": chain.QUIET,
              "optim": {"lr": values["lr"], "warmup_ratio": 0.1}}  # fmt: skip
    if values["train"] == "dpo":
        objective = {"type": "dpo", "beta": 0.1}
        return {"policy": {"type": "dpo", "data": {"path": rows}, "epochs": 2, "objective": objective, **common}}  # fmt: skip
    best = {"path": "@best/demonstrations.jsonl"}
    return {
        "best": {"type": "first-ranked", "data": rows},
        "policy": {"type": "sft", "data": best, "epochs": 2, **common},
    }


def arm(out: Path, start: Path, seed: int, values: dict[str, Any], settings: Settings) -> ArmResult:
    """Train a policy on labels and measure it; one arm also measures the judges."""
    from trimtab.questions import judge_measures, judge_probes  # here, because pages need no torch

    folder = out / "stages"
    chain.run_stages(folder, stages(values, settings), seed, {"start": start})
    completions = settings.options["num_completions"]
    answers, before = (read_answers(folder / "compare", m, completions) for m in ("policy", "sft"))
    measures = of_policy(answers) | {f"sft.{k}": m for k, m in of_policy(before).items()}
    policy = folder / last_stage(values, settings) / "model"
    probe, sft = str(start / "probes" / "voice.jsonl"), str(start / "sft" / "model")
    odds = judge_probes.policy_log_odds(str(policy), sft, probe)
    measures["log_odds"] = Measure(odds)
    if values["train"] == "generations":
        first = str(folder / "rl1" / "model")
        measures["first.log_odds"] = Measure(judge_probes.policy_log_odds(first, sft, probe))
    if values["train"] == "rl":
        model = start / f"rm_{values['labels']}" / "model"
        measures["model.log_odds"] = Measure(judge_probes.reward_log_odds(str(model), probe))
    if values.get("judges"):
        measures |= judge_measures.of_judges(start, settings)
    return ArmResult(measures)


def of_policy(answers: Answers) -> dict[str, Measure]:
    """Gold, and the share of completions in the judge's voice."""
    return {
        "gold": over_prompts(answers.scores["gold"].mean(1)),
        "voice": over_prompts(answers.share(in_voice)),
    }


def not_worse(arm: Measure, than: Measure, margin: float) -> Measure:
    """How far an arm is above another less a margin: above 0 it is as good but for the margin."""
    return combined([arm, than], lambda m: margin + m[0] - m[1])


def derive(arms: Mapping[str, ArmResult], settings: Settings) -> dict[str, ArmResult]:
    """Judges, the links of the chain, and policies as good as others."""
    margin = settings.options["margin"]
    judges = arms["people"].measures
    derived: dict[str, ArmResult] = {}
    derived["sft"] = arms["people"].part("sft.")
    for name in settings.options["judges"]:
        own = arms[name].measures
        links = (judges[f"{name}.log_odds"], own["model.log_odds"], own["log_odds"])
        for link, measure in zip(CHAIN, links, strict=True):
            derived[f"{link}[judge={name}]"] = ArmResult({"log_odds": measure})
        derived[f"once as many[judge={name}]"] = arms[name]
        derived[f"more[judge={name}]"] = arms[f"{name} more"]
    for name in (*settings.options["judges"], *settings.options["strengths"]):
        close = not_worse(arms[name].measures["gold"], arms["people"].measures["gold"], margin)
        derived[f"labels[judge={name}]"] = ArmResult({"not_worse": close})
    for one, other in pairwise(STRENGTHS):
        derived[f"weaker[step={other}]"] = arms[one]
        derived[f"stronger[step={other}]"] = arms[other]
    for way in ("dpo", "sft best"):
        close = not_worse(arms[way].measures["gold"], arms["biased"].measures["gold"], margin)
        derived[f"{way} as good"] = ArmResult({"not_worse": close})
    for by in ("order", "repeat"):
        derived[f"judge[by={by}]"] = ArmResult({"same": judges[f"{by}.same"]})
    for name in ("checks", "blind"):
        derived[name] = ArmResult({"wins": judges[f"persuade_{name}.wins"]})
    for order in ("given", "both"):
        for text in ("injected", "neutral"):
            derived[f"{text}[order={order}]"] = ArmResult({"wins": judges[f"{text}_{order}.wins"]})
    for who in ("judge", "people"):
        derived[f"{who} label"] = ArmResult({"cost": judges[f"{who}.cost"]})
    for share in settings.options["audited"]:
        derived[f"audited[share={share}]"] = arms[f"audited {share}"]
        derived[f"unaudited[share={share}]"] = arms["biased"]
    first = arms["generations"].measures["first.log_odds"]
    derived["first generation"] = ArmResult({"log_odds": first})
    return derived


def figure(result: Result, words: Mapping[str, str]) -> Chart | None:
    """Log-odds for the judge's voice along the chain."""
    groups = {
        words[link]: [
            Bar(words[name], mean_over_seeds(result, f"{link}[judge={name}]", "log_odds"), colour=colour)
            for colour, name in enumerate(("fair", "biased"))
        ]
        for link in CHAIN
    }  # fmt: skip
    return grouped_bars(words["title"], groups, words["y"], words["see"])


EXPERIMENT = Experiment(start, arm, figure, derive)
