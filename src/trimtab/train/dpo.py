"""Direct preference optimisation: DPO and its relatives on pairs and rankings, KTO on labels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import model_validator

from trimtab.data import formats
from trimtab.data.dataset import DataSpec, load_groups
from trimtab.data.pack import Output, Pack
from trimtab.errors import DataError
from trimtab.feedback.comparisons import read_comparisons
from trimtab.models.load import LM, ModelSpec, disable_dropout
from trimtab.models.load_frozen import load_reference
from trimtab.objectives.kto import KTO, KTOAt, labels, mismatched
from trimtab.objectives.pairs import summed
from trimtab.objectives.preference import DPO, Preference
from trimtab.objectives.terms import Objective
from trimtab.stats.uncertainty import bootstrap_mean
from trimtab.train.loop import run_stage
from trimtab.train.reference import CachedReference
from trimtab.train.stage import DatasetConfig, DatasetStage, Metrics, interval
from trimtab.types import Group

log = logging.getLogger(__name__)


class PreferenceConfig(DatasetConfig):
    """Configuration of ``trimtab dpo``.

    ``model`` before the first step is also the reference. ``data`` has comparisons; for
    ``type: kto`` also rows of ``prompt``, ``completion`` and ``label``.
    """

    stage: Literal["dpo"] = "dpo"
    out: str = "runs/dpo"
    objective: Preference = DPO()
    output_folders: ClassVar[frozenset[str]] = frozenset({"reference_cache"})
    reference: ModelSpec | None = None
    """Another model as reference; without it, ``model`` before the first step (adapters off)."""
    reference_cache: str | None = None
    """Folder of the reference's log-probs, shared by runs; without it, in the run folder."""

    @model_validator(mode="after")
    def _check(self) -> PreferenceConfig:
        if self.reference is not None and not self.objective.referenced:
            raise ValueError(
                f"objective {self.objective.name} uses no reference; remove the key reference"
            )
        if isinstance(self.objective, KTO) and self.batch_size < 2:
            raise ValueError(
                "kto needs batch_size >= 2: z0 is measured on completions of other prompts in the batch"
            )
        return self


class PreferenceStage(DatasetStage[PreferenceConfig, LM]):
    """Trains a policy on comparisons, without sampling."""

    rate_of = "preference"

    @property
    def title(self) -> str:
        """The objective's name."""
        return self.config.objective.name

    def read(self, spec: DataSpec) -> list[Group]:
        """Comparisons without ties, or labelled completions for KTO.

        Raises:
            DataError: every comparison is a tie.
        """
        objective = self.config.objective
        read_rows = formats.unpaired if isinstance(objective, KTO) else formats.comparisons
        groups = load_groups(
            spec, read_rows, self.renderer.comparison, read_comparisons, counts=self.read_counts
        )
        usable = [g for g in groups if objective.usable(g)]
        if len(usable) < len(groups):
            log.info(
                "%s: dropped %d of %d prompts that have only ties",
                spec.path,
                len(groups) - len(usable),
                len(groups),
            )
        if not usable:
            raise DataError(f"{spec.path}: every comparison is a tie; nothing can be learnt")
        return usable

    def load_model(self) -> LM:
        """The policy, after the reference's log-probs are on the data."""
        c = self.config
        self.mismatched: list[list[Group]] = []
        """For KTO, mismatched pairs of prompt and completion of each step's batch."""
        self.held_out_mismatched: list[Group] = []
        if isinstance(c.objective, KTO):
            check_labels(self.train, c.objective, c.data.path)
            self.mismatched = [mismatched(self.batch(i)) for i in range(self.steps)]
            self.held_out_mismatched = mismatched(self.held_out)
        if c.reference is not None:
            # Before the policy is loaded: the two are never in memory together.
            self.computed = self.annotate(load_reference(c.reference, self.renderer.tokenizer))
        lm = LM.load(c.model)
        # Without dropout, the log-ratio compares the two models and not two dropout masks.
        disable_dropout(lm.model)
        if c.reference is None:
            self.computed = self.annotate(lm)
        return lm

    def annotate(self, lm: LM) -> int:
        """Put log-probs of the reference on all data; the number of completions not in the cache."""
        c = self.config
        folder = Path(c.reference_cache) if c.reference_cache else Path(c.out) / "reference"
        reference = CachedReference(lm, self.renderer.tokenizer, folder, c.loop.token_budget)
        if c.objective.referenced:
            reference.annotate(self.train)
            reference.annotate([g for groups in self.mismatched for g in groups])
            reference.annotate(self.held_out_mismatched)
        # Without a reference too: metrics show how far log-probs of chosen completions moved.
        reference.annotate(self.held_out)
        return reference.computed

    def forward(self, pack: Pack) -> Output:
        """Log-probs [C] of the trained tokens."""
        return self.root.outputs(pack, entropy=False)

    def z0(self, groups: Sequence[Group]) -> float:
        """KTO's max(0, mean(logpi - logref)) over mismatched pairs, nats; 0 without any."""
        if not groups:
            return 0.0
        ratios: list[float] = []
        for pack, out in self.outputs(groups):
            ratios += summed(out, pack, True)[1].tolist()
        return max(0.0, float(np.mean(ratios)))

    def loss(self, index: int) -> Objective:
        """The objective; KTO's with the z0 of the batch."""
        return self.config.objective.at(self.z0(self.mismatched[index] if self.mismatched else []))

    def step(self, index: int) -> Metrics:
        """Train on the batch of step ``index``; metrics by name."""
        loss = self.loss(index)
        metrics = with_margins(self.update(index, loss))
        return metrics | ({"kto/z0": loss.z0} if isinstance(loss, KTOAt) else {})

    @torch.no_grad()
    def evaluate(self, index: int) -> Metrics:
        """The metrics on held-out data, and the accuracy with its interval over prompts."""
        if not self.held_out:
            return {}
        objective = self.config.objective
        loss = objective.at(self.z0(self.held_out_mismatched))
        sums: dict[str, tuple[float, str]] = {}
        counts: dict[str, float] = {}
        correct: list[float] = []
        owner: list[str] = []
        for pack, out in self.outputs(self.held_out):
            result = loss(out, pack)
            for unit, n in loss.counts(pack).items():
                counts[unit] = counts.get(unit, 0.0) + n
            terms = {k: (t.sum, t.per) for k, t in result.terms.items()} | result.metrics
            for name, (value, unit) in terms.items():
                sums[name] = (sums.get(name, (0.0, unit))[0] + float(value), unit)
            for group, hit in objective.right(out, pack):
                correct.append(hit)
                owner.append(pack.groups[group].id)
        metrics = with_margins({k: v / max(1.0, counts[unit]) for k, (v, unit) in sums.items()})
        mean, low, high = bootstrap_mean(correct, clusters=owner)
        return {f"eval/{k}": v for k, v in metrics.items()} | {
            "eval/accuracy": mean,
            "eval/accuracy_low": low,
            "eval/accuracy_high": high,
            "eval/pairs": float(len(correct)),
        }

    def progress(self, metrics: Metrics) -> str:
        """Loss and accuracy on the batch."""
        return f"loss {metrics['loss']:.3f}  accuracy {metrics.get('rewards/accuracies', 0.5):.2f}"

    def summary(self, metrics: Metrics) -> str:
        """Loss, held-out accuracy, and the change of the chosen completions' log-prob."""
        text = f"loss {metrics.get('loss', float('nan')):.3f}"
        if "eval/accuracy" in metrics:
            text += f", accuracy {interval(metrics, 'eval/accuracy')} held out"
        if "eval/logps/chosen_shift" in metrics:
            shift = metrics["eval/logps/chosen_shift"]
            text += f", chosen log-prob {shift:+.2f} nats compared with the start"
        return text


def check_labels(groups: Sequence[Group], objective: KTO, source: str) -> None:
    """Check that KTO has rows of both labels, and several prompts for z0; warn where the weights of
    the two labels differ by more than the paper advises (equation 8).

    Raises:
        DataError: a label or a second prompt is missing.
    """
    desirable = [x for g in groups for x in labels(g) if x is not None]
    good, bad = sum(desirable), len(desirable) - sum(desirable)
    if not good or not bad:
        raise DataError(
            f"{source}: all {len(desirable)} completions are {'good' if good else 'bad'}; kto learns "
            "from the difference, so give rows of both labels (for good completions only, use sft)"
        )
    if len({tuple(g.prompt.tolist()) for g in groups}) < 2:
        raise DataError(f"{source}: kto needs at least two different prompts for its z0")
    ratio = objective.desirable * good / max(objective.undesirable * bad, 1e-9)
    if not 0.75 <= ratio <= 4 / 3:
        log.warning(
            "%s: %d good completions of weight %g and %d bad ones of weight %g; for balance set "
            "objective.undesirable to %.2g",
            source,
            good,
            objective.desirable,
            bad,
            objective.undesirable,
            objective.desirable * good / bad,
        )


def with_margins(metrics: Metrics) -> Metrics:
    """Add KTO's margin: the difference of two means over different completions."""
    if "rewards/margins" not in metrics and {"rewards/chosen", "rewards/rejected"} <= set(metrics):
        metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
    return metrics


def main(config: PreferenceConfig) -> Metrics:
    """Train on comparisons; the policy is exported to ``out``/model."""
    return run_stage(PreferenceStage, config)
