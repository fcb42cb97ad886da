"""Direct preference optimisation: DPO and its relatives on pairs and rankings, KTO on labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field, model_validator

from trimtab.config import Config
from trimtab.data import formats
from trimtab.data.dataset import DataSpec, load_groups, split
from trimtab.data.pack import Output, Pack, packs
from trimtab.errors import DataError
from trimtab.feedback.comparisons import read_comparisons
from trimtab.models.frozen import load_reference
from trimtab.models.load import LM, ModelSpec, disable_dropout, renderer_for, save_model
from trimtab.objectives.preference import DPO, KTO, Preference, labels, mismatched, summed
from trimtab.runs import Run
from trimtab.runs.console import console
from trimtab.stats.uncertainty import bootstrap_mean
from trimtab.train.loop import fit
from trimtab.train.reference import Reference
from trimtab.train.run_facts import record
from trimtab.train.trainer import LoopSpec, OptimSpec, Part, Trainer, batch_indices
from trimtab.types import Group


class PreferenceConfig(Config):
    """Configuration of ``trimtab dpo``."""

    renamed: ClassVar[dict[str, str]] = {"batch": "batch_size"}
    out: str = "runs/dpo"
    """The run folder."""
    model: ModelSpec
    """Trained, and the reference as it is before the first step."""
    data: DataSpec
    """Comparisons; for ``type: kto`` also rows of ``prompt``, ``completion`` and ``label``."""
    eval_data: DataSpec | None = None
    holdout: int = Field(default=0, ge=0)
    """Rows taken from the end of ``data`` when there is no ``eval_data``."""
    epochs: float = Field(default=1.0, gt=0.0)
    batch_size: int = Field(default=32, gt=0)
    """Prompts (groups) an optimiser step."""
    objective: Preference = DPO()
    reference: ModelSpec | None = None
    """Another model as reference; without it, ``model`` at its start (adapters off)."""
    reference_cache: str | None = None
    """Folder of the reference's log-probs, shared by runs; without it, in the run folder."""
    optim: OptimSpec = OptimSpec(lr=1e-6)
    loop: LoopSpec = LoopSpec()

    @model_validator(mode="after")
    def _sane(self) -> PreferenceConfig:
        name = self.objective.name
        if self.reference is not None and not self.objective.referenced:
            raise ValueError(f"objective {name} reads no reference here; drop the key reference")
        if isinstance(self.objective, KTO) and self.batch_size < 2:
            raise ValueError(
                "kto needs batch_size >= 2: z0 is measured on answers to other prompts of the batch"
            )
        return self


class PreferenceStage:
    """A direct method as a stage of the loop."""

    name = "dpo"

    def __init__(self, config: PreferenceConfig) -> None:
        c = self.config = config
        self.objective = c.objective
        self.renderer = renderer_for(c.model, c.data)
        self.train, self.held = self._data()
        self.steps = max(1, round(c.epochs * len(self.train) / c.batch_size))
        self.others: list[list[Group]] = []
        self.held_others: list[Group] = []
        if isinstance(self.objective, KTO):
            self.others = [mismatched(self._batch(i)) for i in range(self.steps)]
            self.held_others = mismatched(self.held)
        if c.reference is not None:
            # Before the policy is loaded: the two are never in memory together.
            lm = load_reference(c.reference, self.renderer.tokenizer)
            self.computed = self._annotate(lm)
            del lm
        self.lm = LM.load(c.model)
        # Dropout off: the log-ratio compares one function with another, not two noises.
        disable_dropout(self.lm.model)
        if c.reference is None:
            self.computed = self._annotate(self.lm)
        self.trainer = Trainer({"model": self.lm.model}, {"model": c.optim}, self.steps, c.loop)

    def _data(self) -> tuple[list[Group], list[Group]]:
        c = self.config
        make = formats.unpaired if isinstance(self.objective, KTO) else formats.comparisons

        def load(spec: DataSpec) -> list[Group]:
            groups = load_groups(spec, make, self.renderer.comparison, read_comparisons)
            kept = [g for g in groups if self.objective.usable(g)]
            if len(kept) < len(groups):
                console.print(
                    f"{spec.path}: {len(groups) - len(kept)} of {len(groups)} prompts have only "
                    "ties, left out"
                )
            if not kept:
                raise DataError(f"{spec.path}: every comparison is a tie; nothing can be learnt")
            return kept

        train = load(c.data)
        both = (train, load(c.eval_data)) if c.eval_data else split(train, c.holdout, c.data.path)
        if isinstance(self.objective, KTO):
            balanced(both[0], self.objective, c.data.path)
        return both

    def _annotate(self, lm: LM) -> int:
        """Reference (or start) log-probs on all data; how many completions were not cached."""
        c = self.config
        folder = Path(c.reference_cache) if c.reference_cache else Path(c.out) / "reference"
        reference = Reference(lm, self.renderer.tokenizer, folder, c.loop.token_budget)
        if self.objective.referenced:
            reference.annotate(self.train)
            reference.annotate([g for step in self.others for g in step])
            reference.annotate(self.held_others)
        # Without a reference too: where the chosen answers started is worth knowing.
        reference.annotate(self.held)
        return reference.computed

    def _batch(self, index: int) -> list[Group]:
        c = self.config
        return [
            self.train[i] for i in batch_indices(len(self.train), c.batch_size, index, c.loop.seed)
        ]

    def recorded(self, run: Run) -> PreferenceStage:
        """Itself, with ``facts.json`` written."""
        record(run, self.name, self.renderer, self.train, self.held)
        return self

    def forward(self, pack: Pack) -> Output:
        """Log-probs of the trained tokens."""
        return Output(logp_C=self.lm.logps(self.lm.states(pack), pack, entropy=False)[0])

    @torch.no_grad()
    def z0(self, others: Sequence[Group]) -> float:
        """max(0, mean(logpi - logref)) over mismatched pairs, nats; 0 without any."""
        ratios: list[float] = []
        for pack in packs(others, self.config.loop.token_budget, share=self.lm.exact):
            on = pack.to(self.lm.device)
            ratios += summed(self.forward(on), on, True)[1].tolist()
        return max(0.0, float(np.mean(ratios))) if ratios else 0.0

    def step(self, index: int) -> dict[str, float]:
        """See ``Stage``."""
        objective = self.objective
        z0: dict[str, float] = {}
        if isinstance(objective, KTO):
            z0["kto/z0"] = self.z0(self.others[index])
            objective = objective.at(z0["kto/z0"])
        part = Part(self._batch(index), objective, self.forward, self.lm.exact)
        return margins(self.trainer.update([part])) | z0

    @torch.no_grad()
    def evaluate(self, index: int) -> dict[str, float]:
        """The metrics on held-out data, and the accuracy with its interval over prompts."""
        if not self.held:
            return {}
        objective = self.objective
        loss = objective.at(self.z0(self.held_others)) if isinstance(objective, KTO) else objective
        sums: dict[str, tuple[float, str]] = {}
        counts: dict[str, float] = {}
        right: list[float] = []
        owner: list[str] = []
        for pack in packs(self.held, self.config.loop.token_budget, share=self.lm.exact):
            on = pack.to(self.lm.device)
            out = self.forward(on)
            found = loss(out, on)
            for per, n in loss.counts(on).items():
                counts[per] = counts.get(per, 0.0) + n
            all_of = {k: (t.sum, t.per) for k, t in found.terms.items()} | found.metrics
            for name, (value, per) in all_of.items():
                sums[name] = (sums.get(name, (0.0, per))[0] + float(value), per)
            for group, hit in objective.right(out, on):
                right.append(hit)
                owner.append(on.groups[group].id)
        figures = margins({k: v / max(1.0, counts[per]) for k, (v, per) in sums.items()})
        mean, low, high = bootstrap_mean(right, clusters=owner)
        return {f"eval/{k}": v for k, v in figures.items()} | {
            "eval/accuracy": mean,
            "eval/accuracy_low": low,
            "eval/accuracy_high": high,
            "eval/pairs": float(len(right)),
        }

    def samples(self) -> list[dict[str, Any]]:
        """See ``Stage``; direct methods produce no text."""
        return []

    def state(self) -> dict[str, Any]:
        """See ``Stage``; all follows from the step, the weights and the cache."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """See ``Stage``."""

    def export(self, folder: Path) -> None:
        """See ``Stage``."""
        save_model(self.lm.model, folder, self.renderer.tokenizer, self.lm.plain)

    def line(self, metrics: dict[str, float]) -> str:
        """See ``Stage``."""
        return f"loss {metrics['loss']:.3f}  right {metrics.get('rewards/accuracies', 0.5):.2f}"


def balanced(groups: Sequence[Group], objective: KTO, source: str) -> None:
    """What KTO asks of its rows: both labels, and several prompts for z0. Says so where the
    weights of the two sides are apart by more than the paper advises (its equation 8).

    Raises:
        DataError: a label or a second prompt is missing.
    """
    found = [x for g in groups for x in labels(g) if x is not None]
    good, bad = sum(found), len(found) - sum(found)
    if not good or not bad:
        raise DataError(
            f"{source}: all {len(found)} answers are {'good' if good else 'bad'}; kto learns from the "
            "difference, so give rows of both labels (good answers alone are for sft)"
        )
    if len({tuple(g.prompt.tolist()) for g in groups}) < 2:
        raise DataError(f"{source}: kto needs at least two different prompts for its z0")
    share = objective.desirable * good / max(objective.undesirable * bad, 1e-9)
    if not 0.75 <= share <= 4 / 3:
        console.print(
            f"{source}: {good} good answers of weight {objective.desirable:g} and {bad} bad ones of "
            f"weight {objective.undesirable:g}; for balance set objective.undesirable to "
            f"{objective.desirable * good / bad:.2g}"
        )


def margins(metrics: dict[str, float]) -> dict[str, float]:
    """With KTO's margin, which is a difference of two means over different answers."""
    if "rewards/margins" not in metrics and {"rewards/chosen", "rewards/rejected"} <= set(metrics):
        metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
    return metrics


def main(config: PreferenceConfig) -> dict[str, float]:
    """Run the stage; the model is in ``out``/model."""
    run = Run(config.out, config.model_dump(mode="json"), config.loop.report_to)
    figures = fit(PreferenceStage(config).recorded(run), run, config.loop)
    said = f"loss {figures.get('loss', float('nan')):.3f}"
    if "eval/accuracy" in figures:
        said += (
            f", accuracy {figures['eval/accuracy']:.3f} [{figures['eval/accuracy_low']:.3f}, "
            f"{figures['eval/accuracy_high']:.3f}] held out"
        )
    if "eval/logps/chosen_shift" in figures:
        said += f", chosen log-prob {figures['eval/logps/chosen_shift']:+.2f} nats from the start"
    console.print(f"[bold]{config.objective.name}[/bold]: {said} -> {config.out}/model")
    return figures
