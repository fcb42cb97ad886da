"""RL on word problems with a verifier: the stages of an arm, and what questions measure of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.questions import chain
from trimtab.questions.arm_stages import read_answers
from trimtab.questions.measure import ArmResult, Measure, over_prompts
from trimtab.runs import read_metrics

PER_PROMPT = 4
"""Completions of each held-out problem."""
SAMPLING = {"max_new_tokens": 32}
"""Right solutions of two steps have 19 tokens."""
CRITIC = {"optim": {"lr": 1e-3, "warmup_ratio": 0.1, "lr_scheduler_type": "constant"}}
SMOOTHING = 5
"""Iterations over which a curve is averaged before it is read."""
FIRST = 2
"""Iterations whose times are not read: they allocate."""
Floats = npt.NDArray[np.float64]


def rl_stage(
    method: Mapping[str, Any],
    lr: float,
    steps: int,
    completions: int,
    *,
    model: str = "@words/sft/model",
    data: str = "@words/tasks/prompts.jsonl",
    sampling: Mapping[str, Any] = SAMPLING,
) -> dict[str, Any]:
    """The stage ``rl`` of an arm.

    Args:
        method: With ``group_size``.
        completions: Per batch, whatever the method: prompts are ``completions // group_size``.
    """
    stage: dict[str, Any] = {
        "type": "rl", "model": {"path": model}, "data": {"path": data}, "rewards": [chain.VERIFIER],
        "method": dict(method), "sampling": dict(sampling), "steps": steps,
        "batch_size": max(1, completions // method["group_size"]),
        "optim": {"lr": lr, "warmup_ratio": 0.1, "lr_scheduler_type": "constant"}, "loop": chain.QUIET,
    }  # fmt: skip
    return {**stage, "critic": CRITIC} if _has_critic(method) else stage


def noise_stage(
    method: Mapping[str, Any], lr: float, completions: int, batches: int, critic_batches: int
) -> dict[str, Any]:
    """The stage ``gradient-noise`` of an arm: of the reward alone, without a KL.

    Args:
        lr: Checked against what is usual, and not used: the policy stays.
    """
    method = {**method, "kl": {"place": "none"}}
    stage = {**rl_stage(method, lr, 1, completions), "type": "gradient-noise", "batches": batches}
    return {**stage, "critic_batches": critic_batches} if _has_critic(method) else stage


def compare_stage(
    *,
    model: str = "@words/sft/model",
    data: str = "@words/tasks/heldout.jsonl",
    sampling: Mapping[str, Any] = SAMPLING,
) -> dict[str, Any]:
    """The stage ``compare``: the start and the trained policy on held-out problems."""
    return {
        "type": "compare", "baseline": "sft", "data": data, "rewards": [chain.VERIFIER], "html": False,
        "models": {"sft": {"path": model}, "rl": {"path": "@rl/model"}},
        "num_completions": PER_PROMPT, "sampling": dict(sampling),
    }  # fmt: skip


def _has_critic(method: Mapping[str, Any]) -> bool:
    return method["type"] in ("ppo", "a2c")


def measure(folder: Path, goal: float, completions: int) -> ArmResult:
    """What the stages ``rl`` and ``compare`` in ``folder`` show.

    Args:
        goal: Mean reward of a batch whose first time is looked for.
        completions: Per batch.
    """
    answers, before = (read_answers(folder / "compare", n, PER_PROMPT) for n in ("rl", "sft"))
    right, start = answers.scores["right"], before.scores["right"]
    rows = read_metrics(folder / "rl")
    reward = np.array([float(r["reward/mean"]) for r in rows])
    seconds = np.array([float(r["time/step"]) for r in rows])
    reached = iterations_to(reward, goal)
    trained = sum(
        f.stat().st_size for f in (folder / "rl" / "checkpoints").glob("step-*/*.safetensors")
    )
    steps = [float(r.get("policy/approx_kl", 0.0)) for r in rows]
    uniform = [float(r.get("group/uniform", 0.0)) for r in rows]
    measures = {
        "gain": over_prompts((right - start).mean(1)),
        "start": over_prompts(start.mean(1)),
        "score": over_prompts(right.mean(1)),
        "any_right": over_prompts(right.max(1)),
        "kl": over_prompts(answers.scores["kl"].mean(1)),
        "different": over_prompts(answers.different()),
        "drawdown": Measure(drawdown(reward)),
        "step_kl": Measure(float(np.mean(steps))),
        "uniform": Measure(float(np.mean(uniform))),
        "samples": Measure(float(completions * reached)),
        "seconds": Measure(float(seconds[:reached].sum())),
        "step_seconds": Measure(float(np.median(seconds[FIRST:]))),
        "state_mb": Measure(trained / 2**20),
    }
    return ArmResult(measures, {"reward": reward.tolist(), "seconds": seconds.cumsum().tolist()})


def smoothed(curve: npt.ArrayLike, most: int = SMOOTHING) -> Floats:
    """Means of ``most`` values in a row, of all where there are fewer.

    >>> smoothed([0.0, 0.0, 1.0, 1.0, 1.0, 1.0]).round(6).tolist()
    [0.6, 0.8]
    """
    values = np.asarray(curve, np.float64)
    window = min(most, len(values))
    return np.convolve(values, np.ones(window) / window, mode="valid")


def iterations_to(reward: npt.ArrayLike, goal: float, most: int = SMOOTHING) -> int:
    """Iterations until the smoothed reward reaches ``goal``; all of them if it never does.

    >>> iterations_to([0.0, 0.0, 1.0, 1.0, 1.0, 1.0], 0.5), iterations_to([0.0, 0.1], 0.5)
    (5, 2)
    """
    curve = smoothed(reward, most)
    there = curve >= goal
    count = len(np.asarray(reward))
    return count - len(curve) + 1 + int(np.argmax(there)) if there.any() else count


def drawdown(reward: npt.ArrayLike) -> float:
    """The largest fall of the smoothed reward below its highest value before.

    >>> drawdown([0.0, 0.0, 0.0, 0.0, 0.0]), round(drawdown([1.0] * 5 + [0.0] * 5 + [1.0] * 5), 6)
    (0.0, 1.0)
    """
    curve = smoothed(reward)
    return float((np.maximum.accumulate(curve) - curve).max())


def noise_of(summary: Mapping[str, Any], most: float) -> Measure:
    """Noise over signal of a gradient, at most ``most``: the signal may be hidden by the noise.

    >>> noise_of({"noise": 6.0, "signal": 2.0}, 50.0).value, noise_of({"noise": 6.0, "signal": -1.0}, 50.0).value
    (3.0, 50.0)
    """
    noise, signal = float(summary["noise"]), float(summary["signal"])
    return Measure(noise / max(signal, noise / most))


def with_measures(result: ArmResult, **more: Measure) -> ArmResult:
    """``result`` with further measures."""
    return ArmResult({**result.measures, **more}, result.curves)
