"""Word problems with a verifier: one SFT model, every online method, the same sample budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trimtab.config import build
from trimtab.datagen import word_problem_data
from trimtab.evaluate import compare
from trimtab.runs import read_metrics
from trimtab.sandbox.arithmetic import END
from trimtab.train import rl, sft

VERIFIER = {"name": "right", "function": "trimtab.sandbox.word_problems:verifier_reward"}
LIMIT = 32
"""Tokens of a solution at most; right ones of two steps have 19."""
WRONG = 0.35
"""How often a demonstrator's step is wrong: two right steps then come 42 times in 100."""

SIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "full": (
        {
            "difficulty": {"steps": 2, "largest": 15}, "wrong": WRONG,
            "demonstrations": 16_000, "prompts": 3000, "heldout": 300,
        },
        {"epochs": 4, "batch_size": 64, "holdout": 200, "optim": {"lr": 3e-3, "warmup_ratio": 0.05}},
    ),
    "small": (
        {
            "difficulty": {"steps": 1, "largest": 10, "operand": 2}, "wrong": 0.5,
            "demonstrations": 8000, "prompts": 1000, "heldout": 100,
        },
        {"epochs": 1, "batch_size": 16, "holdout": 100, "optim": {"lr": 4e-3, "warmup_ratio": 0.05}},
    ),
}  # fmt: skip
"""Problems and SFT. In the small one, for CI, a problem has one step and half of the demonstrations are wrong."""


def start(out: Path, *, size: str = "full") -> Path:
    """Data and the SFT model, made once: ``out``/tasks and ``out``/sft/model."""
    tasks, training = SIZES[size]
    settings: dict[str, Any] = {"out": str(out / "tasks"), "hidden": 64, "layers": 2, **tasks}
    if not (out / "tasks" / "heldout.jsonl").is_file():
        word_problem_data.main(build(word_problem_data.WordProblemsConfig, settings))
    config = out / "tasks" / "config.json"
    sft.main(
        build(
            sft.SFTConfig,
            {
                "out": str(out / "sft"),
                "model": {"path": str(config), "tokenizer": str(out / "tasks" / "tokenizer")},
                "data": {"path": str(out / "tasks" / "demonstrations.jsonl")},
                **training,
            },
        )
    )  # fmt: skip
    return out


def measure(model: Path, start: Path, out: Path, limit: int | None = None) -> dict[str, Any]:
    """pass@1, 4, 8 on held-out problems, from 8 samples each."""
    results = compare.main(
        build(
            compare.CompareConfig,
            {
                "out": str(out), "models": {"model": {"path": str(model)}},
                "rewards": [VERIFIER], "num_completions": 8, "pass_at": [1, 4, 8], "html": False,
                "data": str(start / "tasks" / "heldout.jsonl"), "limit": limit,
                "sampling": {"max_new_tokens": LIMIT},
            },
        )
    )  # fmt: skip
    return results["model"].summary()


def settings(
    out: Path,
    seed: int,
    start: Path,
    samples: int,
    batch: int,
    lr: float,
    overrides: dict[str, Any],
) -> rl.RLConfig:
    """RL on the verifier: ``batch`` completions a step, ``samples`` in all."""
    values: dict[str, Any] = {
        "out": str(out), "model": {"path": str(start / "sft" / "model")},
        "data": {"path": str(start / "tasks" / "prompts.jsonl")}, "rewards": [VERIFIER],
        "sampling": {"max_new_tokens": LIMIT}, "steps": samples // batch,
        "optim": {"lr": lr, "warmup_ratio": 0.1, "lr_scheduler_type": "constant"}, "loop": {"seed": seed},
        **overrides,
    }  # fmt: skip
    method = build(rl.RLConfig, {**values, "batch_size": batch}).method
    if method.filter.dynamic_sampling:
        # A step with a uniform group draws a second time, and nearly every step has one.
        values["steps"] //= 2
    values["batch_size"] = batch // method.group_size
    if method.advantage.values == "monte-carlo":
        values.setdefault("monte_carlo", {"separator": END})
    if method.needs_critic:
        spec = {"lr": 1e-3, "warmup_ratio": 0.1, "lr_scheduler_type": "constant"}
        values.setdefault("critic", {"optim": spec})
    return build(rl.RLConfig, values)


def learn(
    out: Path,
    seed: int,
    *,
    start: str,
    samples: int = 10_240,
    batch: int = 64,
    lr: float = 2e-4,
    overrides: dict[str, Any],
    limit: int | None = None,
) -> dict[str, Any]:
    """Train and measure: start and end of pass@1 with its interval, pass@k, and the curve."""
    origin = Path(start)
    config = settings(out / "rl", seed, origin, samples, batch, lr, overrides)
    rl.main(config)
    rows = read_metrics(out / "rl")
    before = measure(origin / "sft" / "model", origin, origin / "before", limit)
    after = measure(out / "rl" / "model", origin, out / "after", limit)
    drawn = [batch * float(r.get("group/tries", 1.0)) for r in rows]
    end = after["pass@1"]
    return {
        "start": before["pass@1"]["mean"], "end": end["mean"], "low": end["low"], "high": end["high"],
        "gain": end["mean"] - before["pass@1"]["mean"], "pass@4": after["pass@4"]["mean"],
        "pass@8": after["pass@8"]["mean"], "pass@8_start": before["pass@8"]["mean"],
        "samples": sum(drawn), "continuations": sum(r.get("value/continuations", 0.0) for r in rows),
        "length": after["length"], "kl": rows[-1].get("objective/kl", 0.0),
        "entropy": rows[-1]["objective/entropy"],
        "curve": {"samples": _running(drawn), "reward": [r["reward/mean"] for r in rows]},
    }  # fmt: skip


def _running(values: list[float]) -> list[float]:
    total = 0.0
    means: list[float] = []
    for v in values:
        total += v
        means.append(total)
    return means
