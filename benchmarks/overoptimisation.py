"""Gao's two forms and Coste's ensembles in the sandbox, with real small runs.

``python -m benchmarks.overoptimisation --out runs/overoptimisation`` runs what is missing and writes
``docs/overoptimisation.md`` and ``.json`` from what is in ``--out``. A run is one process of one
thread of under a minute; a stopped benchmark goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import trimtab
from benchmarks.overoptimisation_page import write
from trimtab.config import build
from trimtab.data import formats, sources
from trimtab.data.load_tokenizer import load_tokenizer
from trimtab.data.render import Renderer
from trimtab.datagen import sandbox_data, sandbox_labels
from trimtab.launch.jobs import Job, run
from trimtab.models.load import LM, ModelSpec
from trimtab.objectives.bradley_terry import ensemble
from trimtab.rewards.part_config import RewardSpec
from trimtab.rewards.weighted_sum import Rewards
from trimtab.rollout.collector import collect
from trimtab.rollout.engines.native import NativeEngine
from trimtab.runs import read_metrics
from trimtab.sample.sampler import SamplingConfig
from trimtab.stats.order_stats import best_of_n, kl_bound
from trimtab.train import reward, sft
from trimtab.train import rl as policy

BASE = str(Path(trimtab.__file__).parent / "sandbox" / "base")
GOLD = {"name": "gold", "function": "trimtab.sandbox.world:gold_reward", "weight": 0}
MEMBERS = 4
SEEDS = (0, 1, 2)
ROWS = 200
"""Ranked prompts that a reward model is trained on; few, so that it can be over-optimised."""
ENSEMBLES = ("mean", "worst", "uncertainty")
SINGLES = ("single", *(f"single{k}" for k in range(1, MEMBERS)))
WAYS = (*SINGLES, *ENSEMBLES)
SIZES = (1, 2, 4, 8, 16, 32, 64)
QUIET = {"save_steps": 0, "sample_steps": 0}


def start(out: Path, limit: int = 1500) -> Path:
    """The sandbox's data, an SFT policy, and comparisons of its answers."""
    complete = out / "whole"
    if complete.exists():
        return out
    sandbox_data.main(
        sandbox_data.SandboxDataConfig(
            out=str(out / "world"), demonstrations=3000, prompts=3000, heldout=400
        )
    )
    sft.main(
        build(
            sft.SFTConfig,
            {
                "out": str(out / "sft"), "model": {"path": BASE}, "holdout": 100, "epochs": 1,
                "data": {"path": str(out / "world" / "demonstrations.jsonl")}, "batch_size": 64,
                "optim": {"lr": 5e-4, "warmup_ratio": 0.05},
            },
        )
    )  # fmt: skip
    sandbox_labels.main(
        build(
            sandbox_labels.SandboxLabelsConfig,
            {
                "out": str(out / "label"), "model": {"path": str(out / "sft" / "model")},
                "data": str(out / "world" / "prompts.jsonl"), "limit": limit, "heldout": 300,
                "sampling": {"max_new_tokens": 40},
            },
        )
    )  # fmt: skip
    complete.touch()
    return out


def members(out: Path, seed: int, start: str, rows: int = ROWS) -> dict[str, Any]:
    """Reward models from other heads and other orders of the same few comparisons."""
    accuracy: list[float] = []
    for k in range(MEMBERS):
        summary = reward.main(
            build(
                reward.RewardConfig,
                {
                    "out": str(out / str(k)), "model": {"path": BASE, "seed": 100 * seed + k},
                    "data": {"path": f"{start}/label/comparisons.jsonl", "limit": rows},
                    "eval_data": {"path": f"{start}/label/heldout.jsonl", "limit": 150},
                    "epochs": 4, "batch_size": 16, "optim": {"lr": 5e-4, "warmup_ratio": 0.1},
                    "loop": {"seed": 100 * seed + k},
                },
            )
        )  # fmt: skip
        accuracy.append(float(summary["eval/accuracy"]))
    return {"accuracy": float(np.mean(accuracy))}


def bon(
    out: Path, seed: int, start: str, models: str, prompts: int = 60, n: int = 64
) -> dict[str, Any]:
    """Best of n by each way of combining the members: reward and gold, on held-out prompts."""
    path = f"{start}/sft/model"
    tokenizer = load_tokenizer(path)
    renderer = Renderer(tokenizer)
    lm = LM.load(ModelSpec(path=path), train=False)
    rows = formats.prompts(sources.read(f"{start}/world/heldout.jsonl"))[
        seed * prompts : (seed + 1) * prompts
    ]
    prompts_ = [g for g in map(renderer.prompt, rows) if g is not None]
    engine = NativeEngine.of(lm, renderer)
    groups = collect(
        engine, renderer, prompts_, SamplingConfig(max_new_tokens=40), n=n, key=(seed,)
    )
    parts = tuple(f"{models}/{k}/model" for k in range(MEMBERS))
    spec = RewardSpec(name="rm", models=parts, combine="mean")
    scoring = Rewards([spec, RewardSpec.model_validate(GOLD)], tokenizer, 8192)
    scoring(groups)
    part = scoring.parts["rm"]
    import torch

    scores_: dict[str, Any] = {}
    for way in WAYS:
        at: list[dict[str, float]] = []
        picked: list[list[float]] = []
        for g in groups:
            raw = torch.tensor([[c.scores[f"rm/{k}"].value for c in g.completions] for k in range(MEMBERS)])  # fmt: skip
            scores = torch.stack([m.standardise(r) for m, r in zip(part.members, raw, strict=True)])
            # The weight that Coste et al. take for best-of-n.
            picked.append(
                scores[SINGLES.index(way)].tolist()
                if way in SINGLES
                else ensemble(scores.double(), way, 0.5).tolist()
            )
        worth = [[c.scores["gold"].value for c in g.completions] for g in groups]
        for size in [s for s in SIZES if s <= n]:
            at.append(
                {
                    "n": size, "kl": kl_bound(size),
                    "proxy": float(np.mean([best_of_n(p, size) for p in picked])),
                    "gold": float(np.mean([best_of_n(p, size, w) for p, w in zip(picked, worth, strict=True)])),
                }
            )  # fmt: skip
        scores_[way] = at
    return scores_


def rl(
    out: Path, seed: int, start: str, models: str, way: str = "single", steps: int = 50,
    lr: float = 1e-4, audit: dict[str, Any] | None = None, stop_s: float = 55.0,
) -> dict[str, Any]:  # fmt: skip
    """RLOO without a hold on the KL, by one way of combining the members: the path it takes."""
    paths = [f"{models}/{k}/model" for k in range(MEMBERS)]
    if way in SINGLES:
        spec: dict[str, Any] = {"name": "rm", "model": paths[SINGLES.index(way)]}
    else:
        spec = {"name": "rm", "models": paths, "combine": way}
    settings: dict[str, Any] = {
        "out": str(out / "run"), "model": {"path": f"{start}/sft/model"},
        "data": {"path": f"{start}/world/prompts.jsonl"}, "rewards": [spec, GOLD],
        # So small that it holds nothing, but the KL is measured.
        "method": {"type": "rloo", "group_size": 4, "kl": {"beta": 1e-6}}, "sampling": {"max_new_tokens": 40},
        "steps": steps, "batch_size": 32, "optim": {"lr": lr, "lr_scheduler_type": "constant"},
        "loop": {**QUIET, "seed": seed},
    }  # fmt: skip
    if audit is not None:
        settings["audit"] = audit
    stage = policy.RLStage(build(policy.RLConfig, settings))
    limited(stage, stop_s)
    from trimtab.runs import Run
    from trimtab.train.loop import fit

    fit(stage, Run(settings["out"]), stage.config.loop)
    rows = read_metrics(settings["out"])
    actions = out / "run" / "actions.jsonl"
    return {
        "path": [
            [r["objective/kl"], r["reward/rm"], r["reward/gold"], r["completion/length"]] for r in rows
        ],
        "actions": [json.loads(x) for x in actions.read_text().splitlines()]
        if actions.exists()
        else [],
    }  # fmt: skip


def limited(stage: policy.RLStage, seconds: float) -> None:
    """End the stage after so many seconds of its process's own time."""
    step: Callable[[int], dict[str, float]] = stage.step

    def timed(index: int) -> dict[str, float]:
        if time.process_time() > seconds:
            stage.steps = index + 1
        return step(index)

    stage.step = timed  # type: ignore[method-assign]


def closed(out: Path, seed: int, start: str, models: str, steps: int = 50) -> dict[str, Any]:
    """The single reward again with the guard on: what it saves of the gold that is lost without."""
    audit = {"gold": {"function": GOLD["function"]}, "share": 0.1, "act": "stop", "block_size": 32}
    results = rl(out, seed, start, models, "single", steps, audit=audit)
    results["share"] = audit["share"]
    return results


def jobs(out: Path, first: Path, seeds: Sequence[int]) -> tuple[list[Job], list[Job]]:
    """Reward models, and what needs them."""
    base = {"start": str(first)}
    here = "benchmarks.overoptimisation"
    teach = [Job("members", "all", s, f"{here}:members", base) for s in seeds]
    rest: list[Job] = []
    for s in seeds:
        args = {**base, "models": str(out / f"members-all-{s}")}
        rest.append(Job("bon", "all", s, f"{here}:bon", args))
        rest.append(Job("rl", "single", s, f"{here}:rl", {**args, "way": "single"}))
        rest.append(Job("closed", "stop", s, f"{here}:closed", args))
        rest += [Job("rl", w, s, f"{here}:rl", {**args, "way": w}) for w in WAYS[1:]]
    return teach, rest


def main() -> None:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/overoptimisation"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--page", action="store_true", help="write the page from what is there")
    args = parser.parse_args()
    out: Path = args.out
    if not args.page:
        first = start(out / "start")
        teach, rest = jobs(out, first, args.seeds)
        run(teach, out, args.workers, report=print)
        run(rest, out, args.workers, report=print)
    write(out, args.docs)


if __name__ == "__main__":
    main()
