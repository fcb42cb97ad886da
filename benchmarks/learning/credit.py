"""Credit: process against outcome reward, and whose advantage knows what a step was worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.learning import words
from trimtab.config import build
from trimtab.datagen import step_labels
from trimtab.sandbox import word_problems as sandbox
from trimtab.sandbox.arithmetic import Problem
from trimtab.train import process
from trimtab.train.advantages import assign_advantages
from trimtab.train.rl import RLStage
from trimtab.types import Completion, Group


def true_labels(
    prompts: Sequence[str], completions_steps: Sequence[Sequence[str]], problem: Sequence[str]
) -> list[list[float]]:
    """Process reward from the sandbox's truth: 1 for a right step; the last "step" is the answer."""
    label_rows: list[list[float]] = []
    for raw, steps in zip(problem, completions_steps, strict=True):
        parsed = Problem.from_json(raw)
        *body, last = steps
        text = " ".join(f"{s} {sandbox.END}" for s in body)
        labels = [float(x) for x in sandbox.step_labels(parsed, text)]
        label_rows.append([*labels, float(sandbox.verify(parsed.number, last))])
    return label_rows


def reward_model(out: Path, start: Path) -> Path:
    """A process reward model from Monte-Carlo labels alone: no person, no truth but the verifier."""
    labels = {
        "out": str(out / "labels"), "model": {"path": str(start / "sft" / "model")},
        "data": {"path": str(start / "tasks" / "prompts.jsonl"), "limit": 600},
        "rewards": [words.VERIFIER], "solutions": 4, "continuations": 8, "label": "soft",
        "separator": sandbox.END, "sampling": {"max_new_tokens": words.LIMIT},
    }  # fmt: skip
    step_labels.main(build(step_labels.StepLabelsConfig, labels))
    settings = {
        "out": str(out / "model"), "model": {"path": str(start / "sft" / "model")},
        "data": {"path": str(out / "labels" / "steps.jsonl")}, "holdout": 100, "epochs": 3,
        "separator": sandbox.END, "batch_size": 32, "optim": {"lr": 1e-3, "warmup_ratio": 0.1},
    }  # fmt: skip
    process.main(build(process.ProcessConfig, settings))
    return out / "model" / "model"


def samples_to(curve: dict[str, list[float]], goal: float, window: int = 5) -> float:
    """Samples drawn when the mean reward of the last ``window`` steps first reached ``goal``."""
    reward = np.array(curve["reward"])
    for i in range(window, len(reward) + 1):
        if reward[i - window : i].mean() >= goal:
            return curve["samples"][i - 1]
    return float("nan")


def correlation(
    out: Path, seed: int, *, start: str, warm: int = 60, prompts: int = 100
) -> dict[str, Any]:
    """Spearman correlation of each estimator's advantage with the true effect of the step.

    The policy stands at the SFT model, for which the true effect is that of someone who errs as
    its demonstrators do; only the critic learns, for ``warm`` batches of 128.
    """
    origin = Path(start)

    def stage(name: str, method: dict[str, Any], **more: Any) -> RLStage:
        settings = {"method": method, "optim": {"lr": 1e-12}, **more}
        return RLStage(words.settings(out / name, seed, origin, warm * 128, 128, 1e-12, settings))

    critic = stage("critic", {"type": "ppo", "advantage": {"whiten": False, "lam": 0.95},
                              "kl": {"beta": 0.0}})  # fmt: skip
    last: dict[str, float] = {}
    for index in range(warm):
        last = critic.step(index)
    group = stage("group", {"type": "grpo", "kl": {"place": "none"}})
    vine = stage(
        "vine", {"type": "vineppo", "advantage": {"whiten": False}, "kl": {"beta": 0.0}},
        monte_carlo={"k": 9, "separator": sandbox.END},
    )  # fmt: skip
    groups = group.sample(10_000, prompts, 8)
    done = [c for g in groups for c in g.completions]
    truth = [
        effect
        for g in groups
        for c in g.completions
        for effect in sandbox.step_effects(
            Problem.from_json(g.extra["problem"]), c.text, words.WRONG
        )
    ]
    values: dict[str, list[float]] = {}
    for name, one in (("critic", critic), ("group", group), ("monte_carlo", vine)):
        one._annotate(groups)  # pyright: ignore[reportPrivateUsage]
        if one.state_values is not None:
            one.state_values(groups, 10_000)
        assign_advantages(groups, one.method, 0.0)
        values[name] = [x for g in groups for c in g.completions for x in _by_step(one, g, c)]
    figures: dict[str, Any] = {
        f"rho_{k}": float(spearmanr(v, truth).statistic) for k, v in values.items()
    }
    figures["steps"] = len(truth)
    figures["completions"] = len(done)
    figures["explained_variance"] = last.get("value/explained_variance", float("nan"))
    return figures


def _by_step(stage: RLStage, group: Group, c: Completion) -> list[float]:
    """The mean advantage of the tokens of each step that the sandbox counts."""
    end = stage.renderer.tokenizer.convert_tokens_to_ids(sandbox.END)
    cuts = np.flatnonzero(c.ids == end) + 1
    parts = np.split(c.tokens["advantage"], cuts)[: len(cuts)]
    return [float(p.mean()) for p in parts]
