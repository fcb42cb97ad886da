"""Supervised fine-tuning on demonstrations."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from trimtab.data import formats
from trimtab.data.dataset import DataSpec, load_groups
from trimtab.data.pack import Output, Pack
from trimtab.models.load import LM
from trimtab.objectives.nll import SFT
from trimtab.train.loop import run_stage
from trimtab.train.stage import DatasetConfig, DatasetStage, Metrics
from trimtab.types import Group


class SFTConfig(DatasetConfig):
    """Configuration of ``trimtab sft``."""

    stage: Literal["sft"] = "sft"
    out: str = "runs/sft"
    objective: SFT = SFT()


class SFTStage(DatasetStage[SFTConfig, LM]):
    """Maximises the log-likelihood of demonstrations."""

    def read(self, spec: DataSpec) -> list[Group]:
        """Demonstrations as groups of one completion."""
        return load_groups(
            spec, formats.demonstrations, self.renderer.demonstration, counts=self.read_counts
        )

    def load_model(self) -> LM:
        """The language model."""
        return LM.load(self.config.model)

    def loss(self, index: int) -> SFT:
        """The negative log-likelihood."""
        return self.config.objective

    def forward(self, pack: Pack) -> Output:
        """Log-probs and entropies [C] of the trained tokens."""
        out: Output = self.root.outputs(pack)
        assert out.entropy_C is not None
        return replace(out, entropy_C=out.entropy_C.detach())

    def evaluate(self, index: int) -> Metrics:
        """Held-out negative log-likelihood, nats per token."""
        total = count = 0.0
        for _, out in self.outputs(self.held_out):
            assert out.logp_C is not None
            total -= float(out.logp_C.sum())
            count += len(out.logp_C)
        return {"eval/nll": total / max(1.0, count)} if self.held_out else {}

    def summary(self, metrics: Metrics) -> str:
        """The loss, in training and on held-out rows."""
        text = f"nll {metrics.get('nll', math.nan):.3f} per token"
        return text + (f", held-out {metrics['eval/nll']:.3f}" if "eval/nll" in metrics else "")


def main(config: SFTConfig) -> Metrics:
    """Fine-tune a model; it is exported to ``out``/model."""
    return run_stage(SFTStage, config)
