"""Question 11: what do DAPO and GSPO add to GRPO?

Each part of DAPO is added to GRPO alone where it can act (many updates per batch, solutions of many lengths, some of
them cut, pass rates from none to all) and where it cannot (one update, one length, nothing cut). It is shown to
change its own mechanism before its effect is judged. GSPO and routing replay are compared on a mixture of experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.questions import chain
from trimtab.questions.arm_stages import read_answers
from trimtab.questions.claim import Settings
from trimtab.questions.experiment import Experiment, Result, mean_over_seeds
from trimtab.questions.measure import ArmResult, Measure, over_prompts
from trimtab.questions.word_problem_arms import PER_PROMPT
from trimtab.report.charts import Bar, Chart, grouped_bars
from trimtab.runs import read_metrics

PARTS: Mapping[str, Mapping[str, Any]] = {
    "no-kl": {"kl": {"place": "none"}},
    "clip": {"clip": {"high": 0.28}},
    "overlong": {"length": {"overlong": 0.2, "mask_truncated": True}},
    "token": {"aggregation": "token-mean"},
    "filter": {"filter": {"dynamic_sampling": True, "max_tries": 1}},
    "refill": {"filter": {"dynamic_sampling": True, "max_tries": 5}},
}
"""What each part of DAPO changes. "filter" drops groups with equal rewards, at as many completions; "refill" draws
others in their place, as the paper does."""
ALONE = ("no-kl", "clip", "overlong", "token", "filter")
CURVES = {"pass": "reward/right", "entropy": "objective/entropy"}


def start(folder: Path, seed: int, settings: Settings, starts: Path) -> Path:
    """The SFT models on problems of one to six steps, and, as a mixture of experts, on two steps."""
    sizes, options = settings.sizes, settings.options
    dense = chain.word_problems(starts, seed, sizes, task=chain.ONE_TO_SIX)
    for split in ("prompts", "heldout"):
        chain.split_by_steps(dense / "tasks" / f"{split}.jsonl", [options["plain_steps"]])
    few = {**sizes, "demonstrations": sizes["mixture_demonstrations"]}
    task = {**chain.TASK, **options["mixture"]}
    mixture = chain.word_problems(starts, seed, few, task=task)
    folder.mkdir(parents=True, exist_ok=True)
    for name, origin in (("dense", dense), ("mixture", mixture)):
        place = folder / name
        if not place.is_symlink():
            place.symlink_to(origin.resolve(), target_is_directory=True)
    return folder


def method_of(values: Mapping[str, Any], updates: int, group_size: int) -> dict[str, Any]:
    """GRPO, or the arm's method, with the parts that the arm adds."""
    method: dict[str, Any] = {"type": values.get("method", "grpo"), "group_size": group_size}
    method["updates"] = {"minibatches": updates}
    for name in values.get("parts", ()):
        method |= PARTS[name]
    return method


def stages(values: Mapping[str, Any], settings: Settings) -> dict[str, dict[str, Any]]:
    """The stages of an arm: RL, and its policy and the SFT model on held-out problems."""
    sizes, options = settings.sizes, settings.options
    where = options["where"][values.get("where", "experts")]
    start = "@start/mixture" if values.get("model") == "mixture" else "@start/dense"
    of = "" if where["steps"] == "all" or "mixture" in start else f"-{where['steps']}"
    sampling = {"max_new_tokens": where["tokens"]}
    updates = min(where["updates"], sizes["batch"] * options["group_size"])
    return {
        "rl": {
            "type": "rl", "model": {"path": f"{start}/sft/model"}, "rewards": [chain.VERIFIER],
            "data": {"path": f"{start}/tasks/prompts{of}.jsonl"},
            "method": method_of(values, updates, options["group_size"]),
            "sampling": sampling, "steps": sizes["iterations"], "batch_size": sizes["batch"],
            "routing": values.get("routing", "own"), "loop": chain.QUIET,
            "optim": {"lr": values["lr"], "lr_scheduler_type": "constant", "warmup_ratio": 0.1},
        },
        "compare": {
            "type": "compare", "baseline": "sft", "pass_at": [1], "num_completions": PER_PROMPT,
            "models": {"sft": {"path": f"{start}/sft/model"}, "rl": {"path": "@rl/model"}},
            "data": f"{start}/tasks/heldout{of}.jsonl", "rewards": [chain.VERIFIER],
            "limit": sizes["heldout_used"], "sampling": sampling, "html": False,
        },
    }  # fmt: skip


def arm(out: Path, start: Path, seed: int, values: dict[str, Any], settings: Settings) -> ArmResult:
    """Train one arm; its effect on held-out problems, and what its parts are meant to change."""
    chain.run_stages(out / "stages", stages(values, settings), seed, {"start": start})
    compared = out / "stages" / "compare"
    answers, before = (read_answers(compared, n, PER_PROMPT) for n in ("rl", "sft"))
    right = answers.scores["right"]
    rows = read_metrics(out / "stages" / "rl")
    lengths = [len(text.split()) for texts in answers.texts for text in texts]
    tokens = "token" in values.get("parts", ())
    measures = {
        "pass": over_prompts(right.mean(1)),
        "gain": over_prompts((right - before.scores["right"]).mean(1)),
        "kl": over_prompts(answers.scores["kl"].mean(1)),
        "long_share": Measure(long_share(lengths, by_token=tokens)),
    }
    tail = settings.options["tail"]
    late = {"entropy": "objective/entropy", "truncated": "completion/truncated"}
    measures |= {name: Measure(_mean(rows[-tail:], key)) for name, key in late.items()}
    throughout = {
        "idle": "group/idle", "token_noise": "policy/approx_kl", "flips": "routing/flips",
        "sequence_noise": "policy/approx_kl_sequence", "tries": "group/tries",
    }  # fmt: skip
    measures |= {
        n: Measure(_mean(rows, k)) for n, k in throughout.items() if any(k in r for r in rows)
    }
    curves = {name: [float(r[key]) for r in rows if key in r] for name, key in CURVES.items()}
    return ArmResult(measures, curves)


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    """Over the iterations that have the metric: one whose groups were all dropped has few."""
    return float(np.mean([r[key] for r in rows if key in r] or [0.0]))


def long_share(lengths: Sequence[int], *, by_token: bool) -> float:
    """The share of the loss that the longest quarter of the completions carries: a quarter where every
    completion weighs the same, more where every token does.

    >>> long_share([10, 10, 10, 30], by_token=True), long_share([10, 10, 10, 30], by_token=False)
    (0.5, 0.25)
    """
    weights = np.sort(np.array(lengths, float)) if by_token else np.ones(len(lengths))
    return float(weights[-max(1, round(len(weights) / 4)) :].sum() / weights.sum())


def derive(arms: Mapping[str, ArmResult], settings: Settings) -> dict[str, ArmResult]:
    """The noise of the two kinds of ratios, of one and the same run."""
    derived: dict[str, ArmResult] = {}
    for model in ("dense", "mixture"):
        run = arms[f"grpo[model={model}]"].measures
        for level in ("token", "sequence"):
            derived[f"{level} ratio[model={model}]"] = ArmResult({"noise": run[f"{level}_noise"]})
    return derived


def figure(result: Result, words: Mapping[str, str]) -> Chart | None:
    """Gain over the SFT model by part, where it can act and where it cannot."""
    groups = {
        words[name]: [
            Bar(
                words[where],
                mean_over_seeds(result, f"{name}[where={where}]", "gain"),
                colour=i,
            )
            for i, where in enumerate(("mixed", "plain"))
        ]
        for name in ("grpo", *ALONE, "dapo")
    }
    return grouped_bars(words["title"], groups, words["y"], words["see"])


EXPERIMENT = Experiment(start, arm, figure, derive)
