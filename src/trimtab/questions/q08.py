"""Question 8: DPO or PPO?

All arms start from one SFT model and learn from the same ranked completions: DPO and its relatives
directly, PPO and online DPO through a reward model, SFT from the completions ranked first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.questions import chain, policy_measures, three_answers
from trimtab.questions.claim import Settings
from trimtab.questions.experiment import Experiment, Result, mean_over_seeds
from trimtab.questions.measure import ArmResult, Measure, combined, over_prompts
from trimtab.report.charts import Chart, Line, line_chart
from trimtab.runs import read_metrics

SETS = ("all", "kinds")
LEVELS = (100, 300, 3000)
LINES = ("ppo", "dpo", "first")
RATES = ("low", "high")
SHIFTS = {"chosen": "eval/logps/chosen_shift", "rejected": "eval/logps/rejected_shift"}
LEARNED = ("ppo", "online")
"""Ways of training that need a reward model."""


def start(_: Path, seed: int, settings: Settings, starts: Path) -> Path:
    """World, SFT model and labels."""
    return chain.wide(starts, seed, settings.sizes)


def stages(
    values: Mapping[str, Any], settings: Settings, start: Path
) -> tuple[dict[str, dict[str, Any]], str]:
    """The stages that train an arm, and the folder of its policy."""
    way, sizes = values["train"], settings.sizes
    if way == "none":
        return {}, "@start/sft/model"
    rows, lr = chain.rows_of(values["labels"], sizes), settings.rate(values)
    passes = settings.options["epochs"] * values.get("pushed", 1)
    offline: dict[str, Any] = {
        "model": {"path": "@start/sft/model"}, "epochs": passes, "batch_size": chain.batch_of(rows),
        "optim": {"lr": lr, "warmup_ratio": 0.1}, "loop": chain.QUIET,
    }  # fmt: skip
    labels = "@start/label/comparisons.jsonl"
    if way == "first":
        return {
            "best": {"type": "first-ranked", "data": labels, "limit": rows},
            "train": {"type": "sft", **offline, "data": {"path": "@best/demonstrations.jsonl"}},
        }, "@train/model"
    if way == "dpo":
        return {
            "train": {
                "type": "dpo", **offline, "data": {"path": labels, "limit": rows},
                "eval_data": {"path": "@start/label/heldout.jsonl"},
                "objective": values["objective"],
            }
        }, "@train/model"  # fmt: skip
    reward = str(chain.reward_part(rows).folder(start) / "reward" / "model")
    beta, pushed = values["beta"], values.get("pushed", 1)
    rl = chain.ppo_stage(reward, lr, sizes, beta=beta, steps=pushed)
    if way == "online":  # as many completions and updates as PPO: two per prompt
        shared = {k: rl[k] for k in ("model", "data", "rewards", "sampling", "optim", "loop")}
        rl = {
            "type": "online-dpo", **shared, "objective": {"type": "dpo", "beta": beta},
            "num_completions": 2, "batch_size": max(1, sizes["batch"] // 8),
            "steps": 4 * sizes["steps"],
        }  # fmt: skip
    return {"train": rl}, "@train/model"


def arm(out: Path, start: Path, seed: int, values: dict[str, Any], settings: Settings) -> ArmResult:
    """Train one arm and measure its policy, what it cost, and how far log-probs moved."""
    if values["train"] == "optimum":
        shares = three_answers.agreements(seed, values["covered"])
        return ArmResult({"agreement": over_prompts(shares)})
    options, folder = settings.options, out / "stages"
    if values["train"] in LEARNED:
        chain.reward_part(chain.rows_of(values["labels"], settings.sizes)).make(start, seed)
    training, model = stages(values, settings, start)
    measured = policy_measures.stages({"path": model}, options, SETS)
    chain.run_stages(folder, {**training, **measured}, seed, {"start": start})
    measures = policy_measures.read(folder, options, SETS)
    spent = [folder / name for name in training]
    if values["train"] in LEARNED:
        rows = chain.rows_of(values["labels"], settings.sizes)
        spent.append(chain.reward_part(rows).folder(start) / "reward")
    if spent:
        seconds, most = policy_measures.seconds_and_mb(spent)
        measures |= {"seconds": Measure(seconds), "peak_mb": Measure(most)}
    if values["train"] == "dpo":
        last = [r for r in read_metrics(folder / "train") if SHIFTS["chosen"] in r]
        if last:  # methods without a reference may not have it
            measures |= {
                f"{k}_shift": Measure(float(last[-1][m]))
                for k, m in SHIFTS.items()
                if m in last[-1]
            }
    return ArmResult(measures)  # fmt: skip


def derive(arms: Mapping[str, ArmResult], settings: Settings) -> dict[str, ArmResult]:
    """The spread over learning rates, and what is lost when training is pushed."""
    derived: dict[str, ArmResult] = {}
    labels = settings.options["at_labels"]
    for way in ("dpo", "ppo"):
        usual = arms[f"{way}[labels={labels}]"].measures["gold"]
        others = [arms[f"{way}[rate={r}]"].measures["gold"] for r in RATES]
        derived[f"{way} rates"] = ArmResult(
            {"spread": combined([usual, *others], lambda m: np.ptp(m, axis=0))}
        )
        pushed = arms[f"{way} pushed"].measures["gold"]
        derived[f"{way} lost"] = ArmResult(
            {"lost": combined([usual, pushed], lambda m: m[0] - m[1])}
        )
    return derived


def figure(result: Result, words: Mapping[str, str]) -> Chart | None:
    """Gold by number of ranked prompts."""
    lines: list[Line] = []
    for way in LINES:
        names = {n: f"{way}[labels={n}]" for n in LEVELS}
        levels = [n for n, name in names.items() if name in result["arms"]]
        gold = [mean_over_seeds(result, names[n], "gold") for n in levels]
        lines.append(Line(words[way], [math.log10(n) for n in levels], gold))
    return line_chart(words["title"], lines, words["x"], words["y"], words["see"])


EXPERIMENT = Experiment(start, arm, figure, derive)
