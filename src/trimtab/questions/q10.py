"""Question 10: GRPO instead of PPO?

Word problems with a verifier: PPO and GRPO at one and four epochs, group sizes at three pass rates, and the KL in
the reward or in the loss. Every arm draws as many completions and makes as many batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.questions import chain
from trimtab.questions import word_problem_arms as word_arms
from trimtab.questions.claim import Settings
from trimtab.questions.experiment import Experiment, Result
from trimtab.questions.measure import ArmResult
from trimtab.report.charts import Chart, Line, line_chart

USUAL = "medium"
"""The pass rate of the SFT model that all questions on word problems share."""
CURVES = ("grpo[epochs=1]", "grpo[epochs=4]", "ppo[epochs=1]", "ppo[epochs=4]")
Stages = dict[str, dict[str, Any]]


def start(out: Path, seed: int, settings: Settings, starts: Path) -> Path:
    """The SFT model of word problems, and that model after more demonstrations, worse and better ones."""
    sizes, options = settings.sizes, settings.options
    problems = {k: sizes[k] for k in ("demonstrations", "prompts", "heldout")}
    shared = chain.word_problems(starts, seed, problems)
    for rate, wrong in options["wrong"].items():
        run = further_stages(wrong, settings)
        chain.run_stages(out / rate, run, seed, {"words": shared})
    chain.write_places(out, {"words": shared})
    return out


def further_stages(wrong: float, settings: Settings) -> Stages:
    """SFT that goes on with demonstrations of which ``wrong`` of the steps are wrong."""
    sizes = settings.sizes
    task = {**chain.TASK, "wrong": wrong}
    return {
        "tasks": {
            "type": "word-problems", "demonstrations": sizes["further"], "prompts": 1, "heldout": 1, **task,
        },
        "sft": {
            "type": "sft", "holdout": 50, "data": {"path": "@tasks/demonstrations.jsonl"},
            "model": {"path": "@words/sft/model"}, "loop": chain.QUIET, "epochs": 2, "batch_size": 64,
            "optim": {"lr": 2e-3, "warmup_ratio": 0.1},
        },
    }  # fmt: skip


def stages(values: Mapping[str, Any], settings: Settings) -> Stages:
    """The stages of an arm."""
    rate = values.get("rate", USUAL)
    model = "@words/sft/model" if rate == USUAL else f"@start/{rate}/sft/model"
    rl = word_arms.rl_stage(
        values["method"], values["lr"], settings.sizes["steps"], settings.options["completions"],
        model=model,
    )  # fmt: skip
    return {"rl": rl, "compare": word_arms.compare_stage(model=model)}


def arm(out: Path, start: Path, seed: int, values: dict[str, Any], settings: Settings) -> ArmResult:
    """Train one arm and measure its policy."""
    inputs = {**chain.read_places(start), "start": start}
    folder = out / "stages"
    chain.run_stages(folder, stages(values, settings), seed, inputs)
    options = settings.options
    return word_arms.measure(folder, options["goal"], options["completions"])


def derive(arms: Mapping[str, ArmResult], settings: Settings) -> dict[str, ArmResult]:
    """GRPO with one epoch under the names that it has in other comparisons."""
    return {name: arms["grpo[epochs=1]"] for name in settings.derived}


def figure(result: Result, words: Mapping[str, str]) -> Chart | None:
    """Pass rate of the batches by seconds."""
    lines = [
        Line(words[name], c["seconds"], c["reward"])
        for name in CURVES
        if (c := result["curves"].get(name))
    ]
    return line_chart(words["title"], lines, words["x"], words["y"], words["see"])


EXPERIMENT = Experiment(start, arm, figure, derive)
