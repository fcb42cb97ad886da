"""Question 6: what does the KL coefficient beta do, and how is it chosen?

One weak reward model, so that it can be over-optimised, and eight betas on it. All arms draw as many
completions of the same prompts and make as many updates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.questions import chain
from trimtab.questions.arm_stages import compare, read_answers, rl
from trimtab.questions.claim import Settings
from trimtab.questions.experiment import Experiment, Result, mean_over_seeds
from trimtab.questions.measure import ArmResult, Measure, over_prompts, rank_correlation
from trimtab.report.charts import Bar, Chart, grouped_bars
from trimtab.runs import read_metrics

GOOD = 0.95
"""Gold score from which a completion counts as good."""
CURVES = {"kl": "objective/kl", "reward": "reward/model", "gold": "reward/gold"}
SWEEP = ("beta=0", "beta=0.02", "beta=0.05", "beta=0.1", "beta=0.2", "beta=0.5", "beta=1", "beta=5")
SMOOTHING = 5
"""Iterations over which a path is averaged before it is read at a KL."""


def start(_: Path, seed: int, settings: Settings, starts: Path) -> Path:
    """World, SFT model and a weak reward model."""
    return chain.sandbox(starts, seed, settings.sizes)


def stages(values: Mapping[str, Any], settings: Settings) -> dict[str, dict[str, Any]]:
    """The stages of an arm: RL, and its policy on held-out prompts."""
    reward = {"name": "model", "model": "@start/reward/model"}
    models = {"sft": "@start/sft/model", "rl": "@rl/model"}
    fluency = {"path": chain.BASE}
    return {
        "rl": rl(values, settings, [reward]),
        "compare": compare(models, settings, [chain.GOLD, reward], fluency=fluency),
    }


def arm(out: Path, start: Path, seed: int, values: dict[str, Any], settings: Settings) -> ArmResult:
    """Train one arm and measure its policy."""
    chain.run_stages(out / "stages", stages(values, settings), seed, {"start": start})
    answers = read_answers(out / "stages" / "compare", "rl", settings.options["num_completions"])
    rows = read_metrics(out / "stages" / "rl")
    curves = {name: [float(r[metric]) for r in rows] for name, metric in CURVES.items()}
    gold = answers.scores["gold"]
    measures = {
        "gold": over_prompts(gold.mean(1)),
        "reward": over_prompts(answers.scores["model"].mean(1)),
        "kl": over_prompts(answers.scores["kl"].mean(1)),
        "nll": over_prompts(answers.scores["nll"].mean(1)),
        "different": over_prompts(answers.different()),
        "different_good": over_prompts(answers.different(gold >= GOOD)),
        "in_range": _in_range(curves["kl"], settings),
    }
    return ArmResult(measures, curves)


def _in_range(kl: Sequence[float], settings: Settings) -> Measure:
    """Share of the second half of the iterations whose KL lies in the range."""
    limits = settings.options["range"]
    late = np.array(kl[len(kl) // 2 :])
    return Measure(float(((limits["low"] <= late) & (late <= limits["high"])).mean()))


def derive(arms: Mapping[str, ArmResult], settings: Settings) -> dict[str, ArmResult]:
    """What only all arms together say: early signals, the best beta, and the frontier."""
    options = settings.options
    final = [arms[name].measures["gold"].value for name in SWEEP]
    derived: dict[str, ArmResult] = {}
    for signal in CURVES:
        early = [_early(arms[name].curves[signal], options["early"]) for name in SWEEP]
        # The common advice reads a fast KL as a warning, the other two as good signs.
        signs = [-x for x in early] if signal == "kl" else early
        rank = rank_correlation(signs, final)
        derived[f"early[signal={signal}]"] = ArmResult({"foresight": Measure(rank)})
    for end, name in options["ends"].items():
        for role, source in (("middle", options["middle"]), ("end", name)):
            gold = arms[source].measures["gold"]
            derived[f"{role}[end={end}]"] = ArmResult({"gold": gold})
    tail = options["tail"]
    penalised, free = arms[options["middle"]].curves, arms[options["ends"]["small"]].curves
    reached = float(np.mean(penalised["kl"][-tail:]))
    at_end = Measure(float(np.mean(penalised["gold"][-tail:])))
    stopped = Measure(gold_at(free["kl"], free["gold"], reached))
    derived["penalty"] = ArmResult({"gold_at_kl": at_end})
    derived["early stop"] = ArmResult({"gold_at_kl": stopped})
    return derived


def _early(curve: Sequence[float], shares: Sequence[float]) -> float:
    first, last = (round(share * len(curve)) for share in shares)
    return float(np.mean(curve[first : max(last, first + 1)]))


def gold_at(kl: Sequence[float], gold: Sequence[float], reached: float) -> float:
    """Gold where a run's smoothed KL first reaches a value; at its end if it never does.

    >>> gold_at([0.0, 1.0, 2.0], [0.5, 0.9, 0.1], 1.0)
    0.5
    """
    window = min(SMOOTHING, len(kl))
    kernel = np.ones(window) / window
    distance, score = (np.convolve(x, kernel, mode="valid") for x in (kl, gold))
    far = distance >= reached
    return float(score[int(np.argmax(far)) if far.any() else -1])


def figure(result: Result, words: Mapping[str, str]) -> Chart | None:
    """Gold and different completions by beta."""
    groups = {
        name.partition("=")[2]: [
            Bar(words[metric], mean_over_seeds(result, name, metric), colour=colour)
            for colour, metric in enumerate(("gold", "different"))
        ]
        for name in SWEEP
    }
    return grouped_bars(words["title"], groups, words["y"], words["see"])


EXPERIMENT = Experiment(start, arm, figure, derive)
