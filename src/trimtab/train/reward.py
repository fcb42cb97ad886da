"""Reward models: Bradley-Terry on pairs and K ranked answers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from trimtab.config import Config
from trimtab.data import formats
from trimtab.data.pack import Output, Pack, packs
from trimtab.models.heads import Scorer
from trimtab.models.load import ModelSpec, save_model
from trimtab.objectives.reward import BradleyTerry
from trimtab.runs import Run, write_atomic
from trimtab.runs.console import console
from trimtab.stats.uncertainty import bootstrap_mean, calibration_bins, ece
from trimtab.train.sft import DataSpec, load_groups, renderer_for, split
from trimtab.train.step import LoopSpec, OptimSpec, Part, Trainer, batch_indices, fit
from trimtab.types import Group


class RewardConfig(Config):
    """Configuration of ``trimtab reward``."""

    out: str = "runs/reward"
    model: ModelSpec
    data: DataSpec
    eval_data: DataSpec | None = None
    holdout: int = Field(default=0, ge=0)
    """Rows taken from the end of ``data`` when there is no ``eval_data``."""
    epochs: float = Field(default=1.0, gt=0.0)
    batch: int = Field(default=32, gt=0)
    """Prompts (groups) an optimiser step."""
    objective: BradleyTerry = BradleyTerry()
    normalise: Literal["none", "mean", "standard"] = "standard"
    """What is subtracted and divided at inference: the statistics are saved with the model."""
    optim: OptimSpec = OptimSpec(lr=1e-5)
    loop: LoopSpec = LoopSpec()


class RewardStage:
    """A reward model as a stage of the loop."""

    name = "reward"

    def __init__(self, config: RewardConfig) -> None:
        self.config = config
        self.renderer = renderer_for(config.model, config.data)
        self.train, self.held = self._data()
        pad = int(self.renderer.tokenizer.pad_token_id)
        self.scorer = Scorer.load(config.model, pad_id=pad)
        self.steps = max(1, round(config.epochs * len(self.train) / config.batch))
        self.trainer = Trainer(
            {"model": self.scorer.model}, {"model": config.optim}, self.steps, config.loop
        )
        self.report: dict[str, Any] = {}

    def _data(self) -> tuple[list[Group], list[Group]]:
        c = self.config

        def load(spec: DataSpec) -> list[Group]:
            return load_groups(spec, formats.comparisons, self.renderer.comparison)

        train = load(c.data)
        return (train, load(c.eval_data)) if c.eval_data else split(train, c.holdout, c.data.path)

    def forward(self, pack: Pack) -> Output:
        """Scores at last tokens."""
        return Output(score_B=self.scorer.scores(pack))

    def step(self, index: int) -> dict[str, float]:
        """See ``Stage``."""
        c = self.config
        batch = [self.train[i] for i in batch_indices(len(self.train), c.batch, index, c.loop.seed)]
        return self.trainer.update([Part(batch, c.objective, self.forward, self.scorer.exact)])

    @torch.no_grad()
    def _scores(self, groups: list[Group]) -> list[tuple[Group, list[float]]]:
        found: list[tuple[Group, list[float]]] = []
        self.scorer.model.eval()
        for pack in packs(groups, self.config.loop.token_budget, share=self.scorer.exact):
            scores = iter(self.scorer.scores(pack.to(self.scorer.device)).tolist())
            found += [(g, [next(scores) for _ in g.completions]) for g in pack.groups]
        self.scorer.model.train()
        return found

    def evaluate(self, index: int) -> dict[str, float]:
        """Accuracy on held-out pairs with its interval, beside length alone and the noise ceiling.

        The ceiling is known only where rows carry ``probs``, the labellers' own probability that
        the earlier answer of each pair is better (the sandbox's do).
        """
        if not self.held:
            return {}
        right: list[float] = []
        longer: list[float] = []
        confidence: list[float] = []
        ceiling: list[float] = []
        owner: list[int] = []
        for number, (group, scores) in enumerate(self._scores(self.held)):
            probs = group.extra.get("probs")
            for i, a in enumerate(group.completions):
                for j in range(i + 1, len(group.completions)):
                    b = group.completions[j]
                    if a.rank is None or b.rank is None or a.rank == b.rank:
                        continue
                    delta = scores[i] - scores[j] if a.rank < b.rank else scores[j] - scores[i]
                    gap = len(a) - len(b) if a.rank < b.rank else len(b) - len(a)
                    right.append(0.5 if delta == 0 else float(delta > 0))
                    longer.append(0.5 if gap == 0 else float(gap > 0))
                    confidence.append(1 / (1 + math.exp(-min(abs(delta), 50.0))))
                    owner.append(number)
                    if probs is not None:
                        p = float(probs[i][j])
                        ceiling.append(max(p, 1 - p))
        if not right:
            return {}
        mean, low, high = bootstrap_mean(right, clusters=owner)
        length = float(np.mean(longer))
        figures = {
            "eval/accuracy": mean,
            "eval/accuracy_low": low,
            "eval/accuracy_high": high,
            "eval/ece": ece(confidence, right),
            "eval/length_only": max(length, 1 - length),
            "eval/pairs": float(len(right)),
        }
        if ceiling:
            figures["eval/ceiling"] = float(np.mean(ceiling))
        self.report = {
            "bins": calibration_bins(confidence, right),
            **{k.removeprefix("eval/"): v for k, v in figures.items()},
        }
        return figures

    def samples(self) -> list[dict[str, Any]]:
        """See ``Stage``."""
        return []

    def state(self) -> dict[str, Any]:
        """See ``Stage``."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """See ``Stage``."""

    def export(self, folder: Path) -> None:
        """Write the classifier with its normalisation, and ``calibration.json`` beside it."""
        mode = self.config.normalise
        if mode != "none":
            scores = [s for _, mine in self._scores(self.train[:1000]) for s in mine]
            spread = float(np.std(scores)) if mode == "standard" else 1.0
            self.scorer.set_normalisation(float(np.mean(scores)), spread or 1.0)
        save_model(self.scorer.model, folder, self.renderer.tokenizer, self.scorer.plain)
        if self.report:
            write_atomic(
                folder.parent / "calibration.json", json.dumps(self.report, indent=1).encode()
            )

    def line(self, metrics: dict[str, float]) -> str:
        """See ``Stage``."""
        return f"accuracy {metrics.get('accuracy', float('nan')):.3f}"


def main(config: RewardConfig) -> dict[str, float]:
    """Run the stage; the model is in ``out``/model."""
    run = Run(config.out, config.model_dump(mode="json"), config.loop.tracker)
    figures = fit(RewardStage(config), run, config.loop)
    said = f"accuracy {figures.get('eval/accuracy', figures.get('accuracy', float('nan'))):.3f}"
    if "eval/accuracy_low" in figures:
        said += (
            f" [{figures['eval/accuracy_low']:.3f}, {figures['eval/accuracy_high']:.3f}] held out"
        )
        said += f", length alone {figures['eval/length_only']:.3f}"
    if "eval/ceiling" in figures:
        said += f", ceiling {figures['eval/ceiling']:.3f}"
    console.print(f"[bold]reward[/bold]: {said} -> {config.out}/model")
    return figures
