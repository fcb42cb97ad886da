"""The sandbox's ranked answers: every direct method, and PPO on a reward model of the same labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

import trimtab
from trimtab.config import build
from trimtab.evaluate import compare as policies
from trimtab.launch import recipe as pipeline
from trimtab.objectives.preference import DIRECT
from trimtab.train import dpo, rl

RECIPES = Path(trimtab.__file__).parent / "recipes"
SHARED = ("world", "sft", "label", "reward")
SETTINGS: dict[str, dict[str, Any]] = {
    "cdpo": {"objective": {"type": "cdpo", "beta": 0.5, "smoothing": 0.1}},
    "ipo_sum": {"objective": {"type": "ipo", "average": "sum", "beta": 0.1}},
    "hinge": {"objective": {"type": "hinge", "beta": 0.5}},
    "slic": {"objective": {"type": "slic", "delta": 4.0, "nll_weight": 0.1}},
    "rpo": {"objective": {"type": "rpo", "beta": 0.5, "rpo_alpha": 0.1}},
    "reference-free dpo": {"objective": {"type": "dpo", "beta": 0.5, "reference_free": True}},
}
"""What the recipe ``sandbox-dpo`` has not."""


def _demo() -> dict[str, Any]:
    """The demo's stages, but all from ``sandbox/base``, as in the recipe of direct methods."""
    stages: dict[str, Any] = yaml.safe_load((RECIPES / "sandbox-ppo.yaml").read_text())["stages"]
    for name in ("sft", "reward"):
        stages[name]["model"] = {"path": "@sandbox/base"}
    return stages


def start(out: Path) -> Path:
    """Demonstrations, SFT model, labels and reward model: the first stages of ``sandbox-ppo``."""
    demo = _demo()
    stages = {name: demo[name] for name in SHARED}
    recipe = pipeline.Recipe(out=str(out), stages=stages, seed=0)
    pipeline.run(recipe, "sandbox-ppo.yaml")
    return out


def names() -> list[str]:
    """Every direct method and the variants above."""
    return sorted({*_recipe(), *SETTINGS})


def _recipe() -> dict[str, dict[str, Any]]:
    stages = yaml.safe_load((RECIPES / "sandbox-dpo.yaml").read_text())["stages"]
    recipe = {n: s for n, s in stages.items() if s["type"] == "dpo"}
    named = {s["objective"]["type"] for s in (*recipe.values(), *SETTINGS.values())}
    assert named == set(DIRECT), named ^ set(DIRECT)
    return recipe


def direct(out: Path, seed: int, *, start: str, name: str) -> dict[str, Any]:
    """Train on the labels, compare with SFT by gold on 600 held-out prompts."""
    recipe = _recipe()
    settings = {**recipe["dpo"], **(recipe.get(name) or SETTINGS[name])}
    del settings["type"]
    origin = Path(start)
    values = {
        **settings, "out": str(out / "run"), "model": {"path": str(origin / "sft" / "model")},
        "data": {"path": str(origin / "label" / "comparisons.jsonl")}, "eval_data": None,
        "reference_cache": str(origin / "reference"), "loop": {"seed": seed},
    }  # fmt: skip
    dpo.main(build(dpo.PreferenceConfig, values))
    return compare(out, origin)


def ppo(out: Path, seed: int, *, start: str) -> dict[str, Any]:
    """The demo's PPO, with its reward model of the same labels."""
    origin = Path(start)
    stages = _demo()
    recipe = pipeline.Recipe(
        out=start, stages={name: stages[name] for name in (*SHARED, "ppo")}, seed=seed
    )
    config = pipeline.plan(recipe, "sandbox-ppo.yaml")[-1].config
    rl.main(build(rl.RLConfig, {**config.model_dump(), "out": str(out / "run")}))
    return compare(out, origin)


def compare(out: Path, start: Path) -> dict[str, Any]:
    """Gold, win rate against SFT with its interval, KL, length."""
    settings = {
        "out": str(out / "compare"), "baseline": "sft", "data": str(start / "world" / "heldout.jsonl"),
        "models": {"sft": {"path": str(start / "sft" / "model")},
                   "rl": {"path": str(out / "run" / "model")}},
        "rewards": [{"name": "gold", "function": "trimtab.sandbox.world:gold_reward"}],
        "sampling": {"max_new_tokens": 40},
    }  # fmt: skip
    results = policies.main(build(policies.CompareConfig, settings))
    sft, rl = (results[name].summary() for name in ("sft", "rl"))
    return {
        "start": sft["gold"]["mean"], "end": rl["gold"]["mean"],
        "win_rate": rl["win_rate"]["mean"], "low": rl["win_rate"]["low"],
        "high": rl["win_rate"]["high"], "kl": rl["kl"], "length": rl["length"],
        "length_start": sft["length"], "distinct_2": rl["distinct_2"],
        "distinct_2_start": sft["distinct_2"],
    }  # fmt: skip
