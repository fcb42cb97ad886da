"""Process reward models: P(step correct), from labelled steps."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from trimtab.config import Config
from trimtab.data import formats
from trimtab.data.dataset import DataSpec, load_groups, split
from trimtab.data.pack import Output, Pack, packs
from trimtab.data.steps import Steps
from trimtab.models.load import ModelSpec, renderer_for, save_model
from trimtab.models.step_scorer import StepScorer
from trimtab.objectives.process_reward import StepLoss
from trimtab.runs import Run, write_atomic
from trimtab.runs.console import console
from trimtab.stats.detection import bootstrap_auc, first_error
from trimtab.stats.uncertainty import bootstrap_mean, calibration_bins, ece
from trimtab.train.loop import fit
from trimtab.train.trainer import LoopSpec, OptimSpec, Part, Trainer, batch_indices
from trimtab.types import Group


class ProcessConfig(Config):
    """Configuration of ``trimtab process``."""

    renamed: ClassVar[dict[str, str]] = {"batch": "batch_size"}
    out: str = "runs/process"
    model: ModelSpec
    """A language model, or a process reward model to go on from."""
    data: DataSpec
    """Rows with ``prompt``, ``completions`` (the steps) and ``labels``."""
    eval_data: DataSpec | None = None
    holdout: int = Field(default=0, ge=0)
    """Rows taken from the end of ``data`` when there is no ``eval_data``."""
    separator: str = "\n"
    """Put after each step; P(correct) is read at its last token."""
    epochs: float = Field(default=1.0, gt=0.0)
    batch_size: int = Field(default=32, gt=0)
    """Solutions an optimiser step."""
    objective: StepLoss = StepLoss()
    optim: OptimSpec = OptimSpec(lr=1e-5)
    loop: LoopSpec = LoopSpec()


class ProcessStage:
    """A process reward model as a stage of the loop."""

    name = "process"

    def __init__(self, config: ProcessConfig) -> None:
        self.config = config
        self.renderer = renderer_for(config.model, config.data)
        self.cutter = Steps(self.renderer, config.separator)
        self.train, self.held = self._data()
        pad = int(self.renderer.tokenizer.pad_token_id)
        self.scorer = StepScorer.load(config.model, pad_id=pad)
        self.steps = max(1, round(config.epochs * len(self.train) / config.batch_size))
        self.trainer = Trainer(
            {"model": self.scorer.model}, {"model": config.optim}, self.steps, config.loop
        )
        self.report: dict[str, Any] = {}

    def _data(self) -> tuple[list[Group], list[Group]]:
        c = self.config

        def load(spec: DataSpec) -> list[Group]:
            return load_groups(spec, formats.steps, self.cutter.group)

        train = load(c.data)
        return (train, load(c.eval_data)) if c.eval_data else split(train, c.holdout, c.data.path)

    def forward(self, pack: Pack) -> Output:
        """Log-odds at step ends."""
        return Output(step_C=self.scorer.log_odds(pack))

    def step(self, index: int) -> dict[str, float]:
        """See ``Stage``."""
        c = self.config
        batch = [
            self.train[i] for i in batch_indices(len(self.train), c.batch_size, index, c.loop.seed)
        ]
        return self.trainer.update([Part(batch, c.objective, self.forward, self.scorer.exact)])

    @torch.no_grad()
    def _held_out(self) -> list[tuple[list[float], list[float]]]:
        """P(correct) and labels of the steps of each held-out solution."""
        found: list[tuple[list[float], list[float]]] = []
        self.scorer.model.eval()
        for pack in packs(self.held, self.config.loop.token_budget, share=self.scorer.exact):
            p_C = torch.sigmoid(self.scorer.log_odds(pack.to(self.scorer.device))).cpu().numpy()
            flat = [c for g in pack.groups for c in g.completions]
            at = np.cumsum([c.trained for c in flat])[:-1]
            for c, p_S in zip(flat, np.split(p_C, at), strict=True):
                found.append((p_S.tolist(), c.tokens["step_label"][c.mask].tolist()))
        self.scorer.model.train()
        return found

    def evaluate(self, index: int) -> dict[str, float]:
        """On held-out steps: accuracy and AUC with intervals over solutions, calibration, and how
        often the first wrong step is found.

        ``majority`` is the accuracy of always saying the more frequent label.
        """
        if not self.held:
            return {}
        found = self._held_out()
        p = [x for mine, _ in found for x in mine]
        y = [x for _, mine in found for x in mine]
        owner = [i for i, (mine, _) in enumerate(found) for _ in mine]
        right = [
            0.5 if t == 0.5 else float((x > 0.5) == (t > 0.5)) for x, t in zip(p, y, strict=True)
        ]
        mean, low, high = bootstrap_mean(right, clusters=owner)
        area, area_low, area_high = bootstrap_auc(p, [t > 0.5 for t in y], owner)
        share = float(np.mean([t > 0.5 for t in y]))
        figures = {
            "accuracy": mean,
            "accuracy_low": low,
            "accuracy_high": high,
            "majority": max(share, 1 - share),
            "auc": area,
            "auc_low": area_low,
            "auc_high": area_high,
            "ece": ece(p, y),
            **first_error([a for a, _ in found], [b for _, b in found]),
            "steps": float(len(p)),
        }
        figures = {k: v for k, v in figures.items() if not math.isnan(v)}
        self.report = {"bins": calibration_bins(p, y), **figures}
        return {f"eval/{k}": v for k, v in figures.items()}

    def samples(self) -> list[dict[str, Any]]:
        """See ``Stage``."""
        return []

    def state(self) -> dict[str, Any]:
        """See ``Stage``."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """See ``Stage``."""

    def export(self, folder: Path) -> None:
        """Write the classifier, and ``calibration.json`` beside it."""
        save_model(self.scorer.model, folder, self.renderer.tokenizer, self.scorer.plain)
        if self.report:
            write_atomic(
                folder.parent / "calibration.json", json.dumps(self.report, indent=1).encode()
            )

    def line(self, metrics: dict[str, float]) -> str:
        """See ``Stage``."""
        return f"accuracy {metrics.get('accuracy', float('nan')):.3f}"


def main(config: ProcessConfig) -> dict[str, float]:
    """Run the stage; the model is in ``out``/model."""
    run = Run(config.out, config.model_dump(mode="json"), config.loop.report_to)
    figures = fit(ProcessStage(config), run, config.loop)
    said = f"accuracy {figures.get('eval/accuracy', figures.get('accuracy', float('nan'))):.3f}"
    if "eval/accuracy_low" in figures:
        said += (
            f" [{figures['eval/accuracy_low']:.3f}, {figures['eval/accuracy_high']:.3f}] of "
            f"{figures['eval/steps']:.0f} held-out steps, majority {figures['eval/majority']:.3f}"
        )
    if "eval/auc" in figures:
        said += f", AUC {figures['eval/auc']:.3f}"
    console.print(f"[bold]process[/bold]: {said} -> {config.out}/model")
    return figures
