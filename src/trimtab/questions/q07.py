"""Question 7: what is reward hacking, and which remedy recovers what it costs?

Digests are paid for by keywords and length, which the copied passage earns best. Remedies act alone and
together. A second reward model, of few labels, has errors of its own: there ensembles can help.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.questions import chain
from trimtab.questions.arm_stages import Answers, compare, read_answers
from trimtab.questions.claim import Settings
from trimtab.questions.experiment import Experiment, Result
from trimtab.questions.hacked_start import make, reward_of, stages
from trimtab.questions.measure import ArmResult, Measure, at_end, early_and_late, over_prompts
from trimtab.report.charts import Bar, Chart, grouped_bars
from trimtab.runs import read_metrics
from trimtab.sandbox.gold import copied_share
from trimtab.stats.overoptimisation import fit_points

CURVES = {"kl": "objective/kl", "gold": "reward/gold"}
NEIGHBOURS = 3
"""Iterations whose mean is one point of the curve of gold over KL."""


def start(folder: Path, seed: int, settings: Settings, starts: Path) -> Path:
    """World, SFT, the labels and the reward models; see ``hacked_start``."""
    make(folder, seed, settings, starts)
    return folder


def arm(out: Path, start: Path, seed: int, values: dict[str, Any], settings: Settings) -> ArmResult:
    """Train one arm and measure its policy, or choose among the SFT model's completions."""
    places = chain.read_places(start)
    inputs = {"start": places[values["world"]], "models": places[f"{values['world']}_models"]}
    completions = settings.options["num_completions"]
    folder = out / "stages"
    if "choose" in values:
        rewards = [chain.GOLD, reward_of(values)]
        own = compare({"sft": "@start/sft/model"}, settings, rewards, different_at=[1])
        chain.run_stages(folder, {"compare": own}, seed, inputs)
        answers = read_answers(folder / "compare", "sft", completions)
        return ArmResult({"gold": over_prompts(best(answers))})
    chain.run_stages(folder, stages(values, settings), seed, inputs)
    answers, before = (read_answers(folder / "compare", m, completions) for m in ("rl", "sft"))
    metrics = read_metrics(folder / "rl")
    curves = {name: [float(r[key]) for r in metrics] for name, key in CURVES.items()}
    own_score = answers.scores["model"].mean(1) - before.scores["model"].mean(1)
    measures = of_policy(answers, places[values["world"]])
    measures |= {f"sft.{k}": m for k, m in of_policy(before, places[values["world"]]).items()}
    measures["reward_gain"] = over_prompts(own_score)
    measures["fit"] = Measure(fit_of(curves))
    measures["objective"] = Measure(at_end([float(r["objective/rlhf_reward"]) for r in metrics]))
    return ArmResult(measures, curves)


def best(answers: Answers) -> list[float]:
    """Gold of each prompt's completion that the reward likes best."""
    places = answers.scores["model"].argmax(1)
    return [float(row[i]) for row, i in zip(answers.scores["gold"], places, strict=True)]


def of_policy(answers: Answers, world: Path) -> dict[str, Measure]:
    """Gold, share of copied words and length of completions to held-out prompts."""
    from trimtab.data import sources
    from trimtab.sandbox.scene import Scene

    rows = sources.read(str(world / "world" / "heldout.jsonl")).rows
    passages = [Scene.from_json(row["scene"]).prompt.split() for _, row in rows]
    copied = [
        float(np.mean([copied_share(passage, text.lower().split()) for text in texts]))
        for passage, texts in zip(passages, answers.texts, strict=True)
    ]
    return {
        "gold": over_prompts(answers.scores["gold"].mean(1)),
        "copied": over_prompts(copied),
        "words": over_prompts(answers.share(lambda text: len(text.split()))),
    }


def fit_of(curves: Mapping[str, Sequence[float]]) -> float:
    """Share of the variance of gold that Gao's form d (alpha - beta ln d) explains, d the root of the KL."""
    kl, gold = (
        [float(np.mean(c[i : i + NEIGHBOURS])) for i in range(0, len(c), NEIGHBOURS)]
        for c in (curves["kl"], curves["gold"])
    )
    if len({max(0.0, x) for x in kl}) < 3:
        return 0.0
    r2 = fit_points(kl, [[g] for g in gold], "rl", draws=2).r2
    return 0.0 if np.isnan(r2) else r2


def derive(arms: Mapping[str, ArmResult], settings: Settings) -> dict[str, ArmResult]:
    """SFT, recovered shares, and two times of the run that a weak reward model leads astray."""
    hacked, careful = arms["hacked"], arms["careful"]
    derived = {"sft": hacked.part("sft.")}
    low, high = (a.measures["gold"].value for a in (hacked, careful))
    for name in settings.options["remedies"]:
        gold = arms[name].measures["gold"].value
        share = recovered(gold, low, high)
        labels = settings.arms[name].get("labels", 0)
        spent = settings.sizes[labels] if labels else 0
        measures = {"recovered": Measure(share), "labels": Measure(float(spent))}
        measures["per_label"] = Measure(100 * share / spent if spent else 0.0)
        derived[f"remedy {name}"] = ArmResult(measures)
    derived["mean[flaw=shared]"], derived["worst[flaw=shared]"] = arms["mean"], arms["worst"]
    derived["one[flaw=shared]"] = hacked
    for role in ("alone", "added"):
        derived[f"process[role={role}]"] = derived[f"remedy process {role}"]
    return derived | early_and_late(arms["one[flaw=own]"].curves["gold"])


def recovered(gold: float, hacked: float, careful: float) -> float:
    """Share of the gold that hacking costs which is there again: 0 as hacked, 1 as with careful labels.

    Where hacking costs less than 0.02 there is nothing to recover, and the share is 0.

    >>> recovered(0.7, 0.5, 0.9)
    0.5
    """
    lost = careful - hacked
    return round((gold - hacked) / lost, 6) if lost >= 0.02 else 0.0


def figure(result: Result, words: Mapping[str, str]) -> Chart | None:
    """Recovered share of each remedy."""
    groups = {
        words[name.removeprefix("remedy ")]: [Bar(words["bar"], float(np.mean(arm["recovered"])))]
        for name, arm in result["arms"].items()
        if name.startswith("remedy ")
    }
    return grouped_bars(words["title"], groups, words["y"], words["see"])


EXPERIMENT = Experiment(start, arm, figure, derive)
