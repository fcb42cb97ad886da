"""Reward models: Bradley-Terry on pairs and K ranked answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from trimtab.config import Config
from trimtab.data import formats
from trimtab.data.dataset import DataSpec, load_groups, split
from trimtab.data.pack import Output, Pack, packs
from trimtab.evaluate.accuracy import Name
from trimtab.evaluate.reward_models import FIGURES, figures
from trimtab.feedback.comparisons import read_comparisons
from trimtab.models.heads import Scorer
from trimtab.models.load import ModelSpec, renderer_for, save_model
from trimtab.objectives.bradley_terry import BradleyTerry
from trimtab.runs import Run, write_atomic
from trimtab.runs.console import console
from trimtab.train.loop import fit
from trimtab.train.run_facts import record
from trimtab.train.trainer import LoopSpec, OptimSpec, Part, Trainer, batch_indices
from trimtab.types import Group


class RewardConfig(Config):
    """Configuration of ``trimtab reward``."""

    renamed: ClassVar[dict[str, str]] = {"batch": "batch_size"}
    out: str = "runs/reward"
    model: ModelSpec
    data: DataSpec
    eval_data: DataSpec | None = None
    holdout: int = Field(default=0, ge=0)
    """Rows taken from the end of ``data`` when there is no ``eval_data``."""
    evals: dict[Name, DataSpec] = Field(default_factory=dict[Name, DataSpec])
    """More held-out comparisons by name, such as ``old`` and ``new``: each is told by itself, as
    "eval/NAME/accuracy" and so on."""
    epochs: float = Field(default=1.0, gt=0.0)
    batch_size: int = Field(default=32, gt=0)
    """Prompts (groups) an optimiser step."""
    objective: BradleyTerry = BradleyTerry()
    normalise: Literal["none", "mean", "standard"] = "standard"
    """What is subtracted and divided at inference: the statistics are saved with the model."""
    optim: OptimSpec = OptimSpec(lr=1e-5)
    loop: LoopSpec = LoopSpec()

    @model_validator(mode="after")
    def _names(self) -> RewardConfig:
        taken = sorted(FIGURES & self.evals.keys())
        if taken:
            raise ValueError(f"evals: {', '.join(taken)} is the name of a figure; choose another")
        return self


class RewardStage:
    """A reward model as a stage of the loop."""

    name = "reward"

    def __init__(self, config: RewardConfig) -> None:
        self.config = config
        self.renderer = renderer_for(config.model, config.data)
        self.train, self.held = self._data()
        self.named = {name: self._load(spec) for name, spec in config.evals.items()}
        self._tell_seen()
        pad = int(self.renderer.tokenizer.pad_token_id)
        self.scorer = Scorer.load(config.model, pad_id=pad)
        self.steps = max(1, round(config.epochs * len(self.train) / config.batch_size))
        self.trainer = Trainer(
            {"model": self.scorer.model}, {"model": config.optim}, self.steps, config.loop
        )
        self.report: dict[str, Any] = {}

    def _load(self, spec: DataSpec) -> list[Group]:
        return load_groups(spec, formats.comparisons, self.renderer.comparison, read_comparisons)

    def _data(self) -> tuple[list[Group], list[Group]]:
        c = self.config
        train = self._load(c.data)
        held = self._load(c.eval_data) if c.eval_data else []
        return (train, held) if held else split(train, c.holdout, c.data.path)

    def _tell_seen(self) -> None:
        """Held-out prompts that are also trained on make an accuracy that says too much."""
        known = {g.prompt.tobytes() for g in self.train}
        first = "eval_data" if self.config.eval_data else "holdout"
        for name, held in {first: self.held, **self.named}.items():
            seen = sum(g.prompt.tobytes() in known for g in held)
            if seen:
                console.print(f"{name}: {seen} of {len(held)} held-out prompts are trained on too")

    def recorded(self, run: Run) -> RewardStage:
        """Itself, with ``facts.json`` written."""
        record(run, self.name, self.renderer, self.train, self.held)
        return self

    def forward(self, pack: Pack) -> Output:
        """Scores at last tokens."""
        return Output(score_B=self.scorer.scores(pack))

    def step(self, index: int) -> dict[str, float]:
        """See ``Stage``."""
        c = self.config
        batch = [
            self.train[i] for i in batch_indices(len(self.train), c.batch_size, index, c.loop.seed)
        ]
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
        """Accuracy on held-out pairs with its interval, beside length alone and the noise ceiling
        (see ``accuracy.figures``); named sets each by itself."""
        told: dict[str, float] = {}
        self.report = {}
        if self.held:
            found, bins = figures(self._scores(self.held))
            told = {f"eval/{k}": v for k, v in found.items()}
            self.report = {"bins": bins, **found} if found else {}
        for name, held in self.named.items():
            found, bins = figures(self._scores(held))
            told |= {f"eval/{name}/{k}": v for k, v in found.items()}
            self.report.setdefault("evals", {})[name] = {"bins": bins, **found}
        return told

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
    run = Run(config.out, config.model_dump(mode="json"), config.loop.report_to)
    told = fit(RewardStage(config).recorded(run), run, config.loop)
    sets = ["eval", *(f"eval/{name}" for name in config.evals)]
    said = "; ".join(_said(told, name) for name in sets if f"{name}/accuracy" in told)
    said = said or f"accuracy {told.get('accuracy', float('nan')):.3f} in training"
    console.print(f"[bold]reward[/bold]: {said} -> {config.out}/model")
    return told


def _said(told: dict[str, float], name: str) -> str:
    """The figures of a held-out set, "eval" or "eval/NAME", in words."""
    at = {k.rpartition("/")[2]: v for k, v in told.items() if k.rpartition("/")[0] == name}
    said = (
        f"accuracy {at['accuracy']:.3f} [{at['accuracy_low']:.3f}, {at['accuracy_high']:.3f}] "
        f"{name.removeprefix('eval/') if '/' in name else 'held out'}, "
        f"length alone {at['length_only']:.3f}"
    )
    return said + (f", ceiling {at['ceiling']:.3f}" if "ceiling" in at else "")
