"""Supervised fine-tuning on demonstrations."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field

from trimtab.config import Config
from trimtab.data import formats
from trimtab.data.dataset import DataSpec, load_groups, split
from trimtab.data.pack import Output, Pack, packs
from trimtab.models.load import LM, ModelSpec, renderer_for, save_model
from trimtab.objectives.nll import SFT
from trimtab.runs import Run
from trimtab.runs.console import console
from trimtab.train.loop import fit
from trimtab.train.run_facts import record
from trimtab.train.trainer import LoopSpec, OptimSpec, Part, Trainer, batch_indices
from trimtab.types import Group


class SFTConfig(Config):
    """Configuration of ``trimtab sft``."""

    renamed: ClassVar[dict[str, str]] = {"batch": "batch_size"}
    out: str = "runs/sft"
    """The run folder."""
    model: ModelSpec
    data: DataSpec
    eval_data: DataSpec | None = None
    """Held-out rows; without it, ``holdout`` rows are taken from the end of ``data``."""
    holdout: int = Field(default=0, ge=0)
    epochs: float = Field(default=1.0, gt=0.0)
    """Passes over the data."""
    batch_size: int = Field(default=32, gt=0)
    """Rows an optimiser step."""
    objective: SFT = SFT()
    optim: OptimSpec = OptimSpec(lr=2e-5)
    loop: LoopSpec = LoopSpec()


class SFTStage:
    """SFT as a stage of the loop."""

    name = "sft"

    def __init__(self, config: SFTConfig) -> None:
        self.config = config
        self.renderer = renderer_for(config.model, config.data)
        self.train, self.held = self._data()
        self.lm = LM.load(config.model)
        self.steps = max(1, round(config.epochs * len(self.train) / config.batch_size))
        self.trainer = Trainer(
            {"model": self.lm.model}, {"model": config.optim}, self.steps, config.loop
        )

    def _data(self) -> tuple[list[Group], list[Group]]:
        c = self.config

        def load(spec: DataSpec) -> list[Group]:
            return load_groups(spec, formats.demonstrations, self.renderer.demonstration)

        train = load(c.data)
        return (train, load(c.eval_data)) if c.eval_data else split(train, c.holdout, c.data.path)

    def recorded(self, run: Run) -> SFTStage:
        """Itself, with ``facts.json`` written."""
        record(run, self.name, self.renderer, self.train, self.held)
        return self

    def forward(self, pack: Pack) -> Output:
        """Log-probs of the trained tokens."""
        logp, entropy = self.lm.logps(self.lm.states(pack), pack)
        return Output(logp_C=logp, entropy_C=entropy.detach())

    def step(self, index: int) -> dict[str, float]:
        """See ``Stage``."""
        c = self.config
        batch = [
            self.train[i] for i in batch_indices(len(self.train), c.batch_size, index, c.loop.seed)
        ]
        return self.trainer.update([Part(batch, c.objective, self.forward, self.lm.exact)])

    @torch.no_grad()
    def evaluate(self, index: int) -> dict[str, float]:
        """Held-out negative log-likelihood per token."""
        if not self.held:
            return {}
        self.lm.model.eval()
        total = count = 0.0
        for pack in packs(self.held, self.config.loop.token_budget, share=self.lm.exact):
            out = self.forward(pack.to(self.lm.device))
            assert out.logp_C is not None
            total -= float(out.logp_C.sum())
            count += len(out.logp_C)
        self.lm.model.train()
        return {"eval/nll": total / max(1.0, count)}

    def samples(self) -> list[dict[str, Any]]:
        """See ``Stage``; SFT produces no text."""
        return []

    def state(self) -> dict[str, Any]:
        """See ``Stage``."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """See ``Stage``."""

    def export(self, folder: Path) -> None:
        """See ``Stage``."""
        save_model(self.lm.model, folder, self.renderer.tokenizer, self.lm.plain)

    def line(self, metrics: dict[str, float]) -> str:
        """See ``Stage``."""
        return f"nll {metrics.get('nll', float('nan')):.3f}"


def main(config: SFTConfig) -> dict[str, float]:
    """Run the stage; the model is in ``out``/model."""
    run = Run(config.out, config.model_dump(mode="json"), config.loop.report_to)
    figures = fit(SFTStage(config).recorded(run), run, config.loop)
    held = f", held-out {figures['eval/nll']:.3f}" if "eval/nll" in figures else ""
    console.print(
        f"[bold]sft[/bold]: nll {figures.get('nll', float('nan')):.3f} a token{held} -> {config.out}/model"
    )
    return figures
