"""Reward models: Bradley-Terry on pairs and on K ranked completions."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from trimtab.data import formats
from trimtab.data.dataset import DataSpec, load_groups
from trimtab.data.pack import Output, Pack
from trimtab.evaluate.accuracy import Name
from trimtab.evaluate.reward_models import FIGURES, figures
from trimtab.feedback.comparisons import read_comparisons
from trimtab.models.heads import Scorer
from trimtab.objectives.bradley_terry import BradleyTerry
from trimtab.train.loop import run_stage
from trimtab.train.stage import DatasetConfig, DatasetStage, Metrics, interval
from trimtab.types import Group

log = logging.getLogger(__name__)


class RewardConfig(DatasetConfig):
    """Configuration of ``trimtab reward``."""

    stage: Literal["reward"] = "reward"
    out: str = "runs/reward"
    evals: dict[Name, DataSpec] = Field(default_factory=dict[Name, DataSpec])
    """More held-out comparisons by name, such as ``old`` and ``new``; each is evaluated separately,
    as "eval/NAME/accuracy" and so on."""
    objective: BradleyTerry = BradleyTerry()
    normalise: Literal["none", "mean", "standard"] = "standard"
    """What is subtracted and divided at inference; the statistics are saved with the model."""

    @model_validator(mode="after")
    def _check_names(self) -> RewardConfig:
        reserved = sorted(FIGURES & self.evals.keys())
        if reserved:
            raise ValueError(
                f"evals: {', '.join(reserved)} is the name of a metric; choose another"
            )
        return self


class RewardStage(DatasetStage[RewardConfig, Scorer]):
    """Trains a scalar head to score the chosen completion above the rejected one."""

    rate_of = "reward"

    def read(self, spec: DataSpec) -> list[Group]:
        """Comparisons as groups of ranked completions."""
        return load_groups(
            spec,
            formats.comparisons,
            self.renderer.scoring,
            read_comparisons,
            counts=self.read_counts,
        )

    def load_model(self) -> Scorer:
        """The model with a scalar head, after a check of the held-out prompts."""
        self.named_held_out = {name: self.read(spec) for name, spec in self.config.evals.items()}
        self._warn_of_leaks()
        return Scorer.load(self.config.model, pad_id=int(self.renderer.tokenizer.pad_token_id))

    def _warn_of_leaks(self) -> None:
        """Held-out prompts that are also trained on make the accuracy too optimistic."""
        trained = {g.prompt.tobytes() for g in self.train}
        first = "eval_data" if self.config.eval_data else "holdout"
        for name, groups in {first: self.held_out, **self.named_held_out}.items():
            leaked = sum(g.prompt.tobytes() in trained for g in groups)
            if leaked:
                log.warning(
                    "%s: %d of %d held-out prompts are also in the training data",
                    name,
                    leaked,
                    len(groups),
                )

    def loss(self, index: int) -> BradleyTerry:
        """The Bradley-Terry loss."""
        return self.config.objective

    def forward(self, pack: Pack) -> Output:
        """Scores [B] at the last tokens of completions."""
        return self.root.outputs(pack)

    def _scores(self, groups: list[Group]) -> list[tuple[Group, list[float]]]:
        """Each group with the scores of its completions."""
        scored: list[tuple[Group, list[float]]] = []
        for pack, out in self.outputs(groups):
            assert out.score_B is not None
            scores = iter(out.score_B.tolist())
            scored += [(g, [next(scores) for _ in g.completions]) for g in pack.groups]
        return scored

    def evaluate(self, index: int) -> Metrics:
        """Accuracy on held-out pairs with its interval, the accuracy of length alone, and the noise
        ceiling (see ``evaluate.reward_models``), for each held-out set."""
        metrics: Metrics = {}
        self.calibration = {}
        if self.held_out:
            values, bins = figures(self._scores(self.held_out))
            metrics = {f"eval/{k}": v for k, v in values.items()}
            self.calibration = {"bins": bins, **values} if values else {}
        for name, groups in self.named_held_out.items():
            values, bins = figures(self._scores(groups))
            metrics |= {f"eval/{name}/{k}": v for k, v in values.items()}
            self.calibration.setdefault("evals", {})[name] = {"bins": bins, **values}
        return metrics

    def export(self, folder: Path) -> None:
        """Write the classifier with its normalisation, and ``calibration.json``."""
        mode = self.config.normalise
        if mode != "none":
            scores = [
                s for _, group_scores in self._scores(self.train[:1000]) for s in group_scores
            ]
            spread = float(np.std(scores)) if mode == "standard" else 1.0
            self.network.set_normalisation(float(np.mean(scores)), spread or 1.0)
        super().export(folder)

    def progress(self, metrics: Metrics) -> str:
        """The accuracy on the batch."""
        return f"accuracy {metrics.get('accuracy', math.nan):.3f}"

    def summary(self, metrics: Metrics) -> str:
        """The accuracy on each held-out set, or in training where there is none."""
        prefixes = ["eval", *(f"eval/{name}" for name in self.config.evals)]
        texts = [_describe(metrics, p) for p in prefixes if f"{p}/accuracy" in metrics]
        return "; ".join(texts) or f"{self.progress(metrics)} in training"


def _describe(metrics: Metrics, prefix: str) -> str:
    """The metrics of one held-out set."""
    text = (
        f"accuracy {interval(metrics, f'{prefix}/accuracy')} "
        f"{prefix.removeprefix('eval/') if '/' in prefix else 'held out'}, "
        f"length alone {metrics[f'{prefix}/length_only']:.3f}"
    )
    ceiling = metrics.get(f"{prefix}/ceiling")
    return text if ceiling is None else f"{text}, ceiling {ceiling:.3f}"


def main(config: RewardConfig) -> Metrics:
    """Train a reward model; it is exported to ``out``/model."""
    return run_stage(RewardStage, config)
