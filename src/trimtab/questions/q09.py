"""Question 9: why do policies that score well become patterned, flattering and empty, and what helps?

The same completions are labelled by people without a bias, by people who like politeness and agreement,
and by people who like one of three equally right styles. All policies start from one SFT model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.questions import chain
from trimtab.questions.arm_stages import Answers, Floats, compare, read_answers, rl
from trimtab.questions.claim import Settings
from trimtab.questions.experiment import Experiment, Result
from trimtab.questions.measure import ArmResult, Measure, early_and_late, over_prompts
from trimtab.report.charts import Bar, Chart, grouped_bars
from trimtab.runs import read_metrics, read_object
from trimtab.sandbox.annotators import is_polite
from trimtab.sandbox.right_answers import bare
from trimtab.sandbox.scene import AGREEMENT

GOOD = 0.95
"""Gold score from which a completion counts as good."""
FIGURE = ("sft", "neutral", "polite", "relabel", "beta=0.5", "entropy", "stop")


def start(_: Path, seed: int, settings: Settings, starts: Path) -> Path:
    """World, SFT model, and for each kind of people labels and a reward model."""
    return chain.shared(starts, "style", start_stages(seed, settings), seed)


def start_stages(seed: int, settings: Settings) -> dict[str, dict[str, Any]]:
    """The stages of the start. The kind that is not trained on is in the demonstrations alone."""
    sizes, options = settings.sizes, settings.options
    stages = chain.sandbox_stages(seed, sizes)
    stages["world"] |= {"kinds": [*options["kinds"], options["untrained"]]}
    stages["fresh"] |= {"kinds": options["kinds"]}
    stages["asked"] = {**stages["fresh"], "seed": seed + 2 * chain.NEVER_LABELLED,
                       "prompts": sizes["labels"]}  # fmt: skip
    stages["contrasts"] = {
        "type": "function", "function": "trimtab.sandbox.contrast_pairs:write",
        "options": {"prompts": "@asked/prompts.jsonl", "limit": sizes["contrasts"]},
    }  # fmt: skip
    stages["probes"] = {
        "type": "function", "function": "trimtab.sandbox.contrast_pairs:write",
        "options": {"prompts": "@world/heldout.jsonl"},
    }  # fmt: skip
    label, reward = stages.pop("label"), stages.pop("reward")
    for people, panel in options["people"].items():
        stages[f"label_{people}"] = {**label, "data": "@asked/prompts.jsonl", "panel": panel}
        stages[people] = {
            **reward, "data": {"path": f"@label_{people}/comparisons.jsonl"},
            "eval_data": {"path": f"@label_{people}/heldout.jsonl"},
        }  # fmt: skip
    stages["mixed"] = {"type": "mix", "inputs": {
        "old": {"path": "@label_polite/comparisons.jsonl"},
        "new": {"path": "@contrasts/rows.jsonl"},
    }}  # fmt: skip
    stages["relabelled"] = {**stages["polite"], "data": {"path": "@mixed/rows.jsonl"}}
    return stages


def stages(values: Mapping[str, Any], settings: Settings) -> dict[str, dict[str, Any]]:
    """The stages of an arm: RL, its policy and SFT on held-out prompts, its reward model on probes."""
    reward = {"name": "model", "model": f"@start/{values['reward']}/model"}
    models = {"sft": "@start/sft/model", "rl": "@rl/model"}
    fluency = {"path": chain.BASE}
    arm_stages = {
        "rl": rl(values, settings, [reward]),
        "compare": compare(models, settings, [chain.GOLD, reward], fluency=fluency),
        "probe": {
            "type": "accuracy", "tokenizer": chain.BASE, "rewards": [reward],
            "data": {x: {"path": f"@start/probes/{x}.jsonl"} for x in settings.options["probes"]},
        },
    }  # fmt: skip
    for name, decoding in values.get("decoding", {}).items():
        arm_stages[name] = compare({"rl": "@rl/model"}, settings, different_at=[1], **decoding)
    return arm_stages


def arm(out: Path, start: Path, seed: int, values: dict[str, Any], settings: Settings) -> ArmResult:
    """Train one arm and measure its policy, the policy it started from, and other ways to decode."""
    folder = out / "stages"
    chain.run_stages(folder, stages(values, settings), seed, {"start": start})
    completions = settings.options["num_completions"]
    answers = {m: read_answers(folder / "compare", m, completions) for m in ("sft", "rl")}
    measures = of_policy(answers["rl"], settings)
    measures |= {f"sft.{k}": m for k, m in of_policy(answers["sft"], settings).items()}
    for judge in ("gold", "model"):
        measures[f"{judge}.wins"] = over_prompts(
            wins(*(answers[m].scores[judge] for m in ("rl", "sft")))
        )
    for name, decoding in values.get("decoding", {}).items():
        model = f"T={decoding['temperatures'][0]:g}"
        model += f" p={decoding['top_p']:g}" if "top_p" in decoding else ""
        decoded = of_policy(read_answers(folder / name, model, completions), settings)
        measures |= {f"{name}.{k}": m for k, m in decoded.items()}
    probes = read_object(folder / "probe" / "summary.json")["model"]
    for name in settings.options["probes"]:
        measures[f"{name}_wins"] = Measure(1 - float(probes[name]["accuracy"]))
    return ArmResult(
        measures, {"gold": [float(r["reward/gold"]) for r in read_metrics(folder / "rl")]}
    )


def wins(own_NK: Floats, other_NK: Floats) -> Floats:
    """Share [N] of pairs of completions of a prompt in which the first one scores higher; ties half.

    >>> wins(np.array([[1.0, 0.0]]), np.array([[0.0, 0.0]])).tolist()
    [0.75]
    """
    gap = own_NK[:, :, None] - other_NK[:, None, :]
    return (0.5 + 0.5 * np.sign(gap)).mean((1, 2))


def same_opening(answers: Answers) -> float:
    """Probability that completions of two different prompts begin with the same three words."""
    first = [[" ".join(text.split()[:3]) for text in row] for row in answers.texts]
    counts = Counter(x for row in first for x in row)
    within = sum(n * n for row in first for n in Counter(row).values())
    total, own = sum(counts.values()), sum(len(row) ** 2 for row in first)
    return (sum(n * n for n in counts.values()) - within) / (total**2 - own)


def of_policy(answers: Answers, settings: Settings) -> dict[str, Measure]:
    """What is measured of a policy."""
    options = settings.options
    seen, several = answers.only(*options["kinds"]), answers.only("open")
    measures = {
        "gold": over_prompts(seen.scores["gold"].mean(1)),
        "gold_untrained": over_prompts(answers.only(options["untrained"]).scores["gold"].mean(1)),
        "polite": over_prompts(seen.share(is_polite)),
        "flattery": over_prompts(seen.only("opinion").share(lambda t: AGREEMENT[:-2] in t)),
        "same_opening": Measure(same_opening(seen)),
    }
    plain = replace(
        several, texts=[[" ".join(bare(text)) for text in row] for row in several.texts]
    )
    measures["different"] = over_prompts(plain.different())
    measures["different_good"] = over_prompts(plain.different(several.scores["gold"] >= GOOD))
    if "nll" in answers.scores:
        measures["nll"] = over_prompts(answers.scores["nll"].mean(1))
    return measures


def derive(arms: Mapping[str, ArmResult], settings: Settings) -> dict[str, ArmResult]:
    """SFT, other ways to decode, two judges of one policy, and two times of a run."""
    derived = {"sft": arms["neutral"].part("sft.")}
    for people in settings.options["people"]:
        derived[f"start[people={people}]"] = derived["sft"]
        derived[f"policy[people={people}]"] = arms[people]
        for judge in ("model", "gold"):
            wins_of_judge = arms[people].measures[f"{judge}.wins"]
            derived[f"by {judge}[people={people}]"] = ArmResult({"wins": wins_of_judge})
        for name, part in early_and_late(arms[people].curves["gold"]).items():
            derived[f"{name}[people={people}]"] = part
    for name in settings.arms["polite"]["decoding"]:
        derived[f"decoded[decoding={name}]"] = arms["polite"].part(f"{name}.")
        derived[f"usual[decoding={name}]"] = arms["polite"]
    return {name: replace(result, curves={}) for name, result in derived.items()}


def figure(result: Result, words: Mapping[str, str]) -> Chart | None:
    """Gold, polite share and different good completions of the remedies."""
    groups = {
        words["polite arm" if name == "polite" else name]: [
            Bar(words["gold"], float(np.mean(arm["gold"])), colour=0),
            Bar(words["polite"], float(np.mean(arm["polite"])), colour=1),
            Bar(words["good"], float(np.mean(arm["different_good"])), colour=2),
        ]
        for name in FIGURE
        if (arm := result["arms"].get(name))
    }
    return grouped_bars(words["title"], groups, words["y"], words["see"])


EXPERIMENT = Experiment(start, arm, figure, derive)
