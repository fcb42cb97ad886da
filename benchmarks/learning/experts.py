"""GSPO against GRPO on a mixture of experts: router flips, and how far ratios spread."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.learning import words
from trimtab.data.pack import packs, scatter
from trimtab.train.rl import RLStage
from trimtab.types import Group

EVERY = 4
"""Steps between two looks at the router."""
BATCH = 64


@torch.no_grad()
def routes(stage: RLStage, groups: Sequence[Group]) -> list[Tensor]:
    """The experts of every token and layer, each [tokens, experts a token], in rising order."""
    chosen: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
        chosen.append(output[2].sort(-1).values.clone())

    hooks = [
        m.register_forward_hook(keep)
        for m in stage.lm.model.modules()
        if type(m).__name__ == "MixtralTopKRouter"
    ]
    assert hooks, "the model has no router"
    for pack in packs(groups, stage.config.loop.token_budget, share=stage.share):
        stage.lm.states(pack.to(stage.lm.device))
    for hook in hooks:
        hook.remove()
    return chosen


def flips(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Share of tokens and layers whose set of experts is another."""
    changed = sum(float((a != b).any(-1).sum()) for a, b in zip(before, after, strict=True))
    return changed / sum(len(a) for a in before)


@torch.no_grad()
def spread(stage: RLStage, groups: Sequence[Group]) -> tuple[float, float]:
    """Variance of log pi/pi_old over the batch's tokens, and of its mean over completions, with
    the weights after the batch's updates."""
    for pack in packs(groups, stage.config.loop.token_budget, share=stage.share):
        logp = stage.forward(pack.to(stage.lm.device)).logp_C
        assert logp is not None
        scatter(pack, {"now": logp.cpu().numpy()})
    moved = [
        (c.tokens["now"] - c.tokens["old_logp"])[c.mask] for g in groups for c in g.completions
    ]
    return float(np.var(np.concatenate(moved))), float(np.var([m.mean() for m in moved]))


def learn(
    out: Path, seed: int, *, start: str, method: dict[str, Any], samples: int = 10_240
) -> dict[str, Any]:
    """Train; pass@1 before and after, flips a batch, spread of ratios."""
    origin = Path(start)
    config = words.settings(out / "rl", seed, origin, samples, BATCH, 2e-4, {"method": method})
    stage = RLStage(config)
    probe = stage.sample(50_000, 32, 4)
    figures: dict[str, list[float]] = {"flips": [], "token": [], "sequence": []}
    drawn: list[float] = []
    rewards: list[float] = []
    for index in range(config.steps):
        looked = index % EVERY == 0
        before = routes(stage, probe) if looked else []
        metrics = stage.step(index)
        rewards.append(metrics["reward/mean"])
        drawn.append(float(BATCH) * (index + 1))
        if looked:
            figures["flips"].append(flips(before, routes(stage, probe)))
            token, sequence = spread(stage, stage.last)
            figures["token"].append(token)
            figures["sequence"].append(sequence)
    stage.export(out / "model")
    start_ = words.measure(origin / "sft" / "model", origin, origin / "before")["pass@1"]["mean"]
    end = words.measure(out / "model", origin, out / "after")["pass@1"]
    return {
        "start": start_, "end": end["mean"], "low": end["low"], "high": end["high"],
        "gain": end["mean"] - start_, "flips": float(np.mean(figures["flips"])),
        "variance_token": float(np.mean(figures["token"])),
        "variance_sequence": float(np.mean(figures["sequence"])),
        "curve": {"samples": drawn, "reward": rewards},
    }  # fmt: skip
