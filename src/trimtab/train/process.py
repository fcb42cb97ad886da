"""Process reward models: P(step correct), from labelled reasoning steps."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Literal

import numpy as np
import torch

from trimtab.data import formats
from trimtab.data.dataset import DataSpec, load_groups
from trimtab.data.pack import Output, Pack
from trimtab.data.steps import Steps
from trimtab.models.step_scorer import StepScorer
from trimtab.objectives.process_reward import StepLoss
from trimtab.stats.detection import bootstrap_auc, first_error
from trimtab.stats.uncertainty import bootstrap_mean, calibration_bins, ece
from trimtab.train.loop import run_stage
from trimtab.train.stage import DatasetConfig, DatasetStage, Metrics, interval
from trimtab.types import Group


class ProcessConfig(DatasetConfig):
    """Configuration of ``trimtab process``.

    The model is a language model, or a process reward model to continue from; rows of ``data``
    have ``prompt``, ``completions`` (the reasoning steps) and ``labels``.
    """

    stage: Literal["process"] = "process"
    out: str = "runs/process"
    separator: str = "\n"
    """Text after each reasoning step; P(correct) is read at its last token."""
    objective: StepLoss = StepLoss()


class ProcessStage(DatasetStage[ProcessConfig, StepScorer]):
    """Trains a classifier of reasoning steps."""

    rate_of = "reward"

    @cached_property
    def splitter(self) -> Steps:
        """Splits solutions into reasoning steps."""
        return Steps(self.renderer, self.config.separator)

    def read(self, spec: DataSpec) -> list[Group]:
        """Labelled solutions as groups."""
        return load_groups(spec, formats.steps, self.splitter.group, counts=self.read_counts)

    def load_model(self) -> StepScorer:
        """The model with a classifier of steps."""
        return StepScorer.load(self.config.model, pad_id=int(self.renderer.tokenizer.pad_token_id))

    def loss(self, index: int) -> StepLoss:
        """The cross-entropy of step labels."""
        return self.config.objective

    def forward(self, pack: Pack) -> Output:
        """Log-odds [C] that the step that ends at a token is correct."""
        return self.root.outputs(pack)

    def _held_out_steps(self) -> list[tuple[list[float], list[float]]]:
        """P(correct) and labels of the steps of each held-out solution."""
        solutions: list[tuple[list[float], list[float]]] = []
        for pack, out in self.outputs(self.held_out):
            assert out.step_C is not None
            p_C = torch.sigmoid(out.step_C).cpu().numpy()
            completions = [c for g in pack.groups for c in g.completions]
            ends = np.cumsum([c.trained for c in completions])[:-1]
            for c, p_S in zip(completions, np.split(p_C, ends), strict=True):
                solutions.append((p_S.tolist(), c.tokens["step_label"][c.mask].tolist()))
        return solutions

    def evaluate(self, index: int) -> Metrics:
        """Metrics on held-out steps: accuracy and AUC with intervals over solutions, calibration,
        and how often the first wrong step is detected.

        ``majority`` is the accuracy of always predicting the more frequent label.
        """
        if not self.held_out:
            return {}
        solutions = self._held_out_steps()
        p = [x for p_S, _ in solutions for x in p_S]
        y = [x for _, labels in solutions for x in labels]
        owner = [i for i, (p_S, _) in enumerate(solutions) for _ in p_S]
        correct = [
            0.5 if t == 0.5 else float((x > 0.5) == (t > 0.5)) for x, t in zip(p, y, strict=True)
        ]
        mean, low, high = bootstrap_mean(correct, clusters=owner)
        area, area_low, area_high = bootstrap_auc(p, [t > 0.5 for t in y], owner)
        positive = float(np.mean([t > 0.5 for t in y]))
        metrics = {
            "accuracy": mean,
            "accuracy_low": low,
            "accuracy_high": high,
            "majority": max(positive, 1 - positive),
            "auc": area,
            "auc_low": area_low,
            "auc_high": area_high,
            "ece": ece(p, y),
            **first_error([a for a, _ in solutions], [b for _, b in solutions]),
            "steps": float(len(p)),
        }
        metrics = {k: v for k, v in metrics.items() if not math.isnan(v)}
        self.calibration = {"bins": calibration_bins(p, y), **metrics}
        return {f"eval/{k}": v for k, v in metrics.items()}

    def progress(self, metrics: Metrics) -> str:
        """The accuracy on the batch."""
        return f"accuracy {metrics.get('accuracy', math.nan):.3f}"

    def summary(self, metrics: Metrics) -> str:
        """Accuracy and AUC on held-out steps."""
        if "eval/accuracy_low" not in metrics:
            return f"accuracy {metrics.get('eval/accuracy', metrics.get('accuracy', math.nan)):.3f}"
        text = (
            f"accuracy {interval(metrics, 'eval/accuracy')} on {metrics['eval/steps']:.0f} held-out "
            f"steps, majority {metrics['eval/majority']:.3f}"
        )
        return text + (f", AUC {metrics['eval/auc']:.3f}" if "eval/auc" in metrics else "")


def main(config: ProcessConfig) -> Metrics:
    """Train a process reward model; it is exported to ``out``/model."""
    return run_stage(ProcessStage, config)
