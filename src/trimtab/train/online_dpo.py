"""Online direct methods (2402.04792): each step the policy answers, a judge or a reward chooses
between its answers, and the pairs are trained on at once, against a fixed reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from trimtab.config import Config
from trimtab.data import formats
from trimtab.data.dataset import DataSpec, load_groups
from trimtab.data.pack import Output, Pack
from trimtab.models.load import LM, ModelSpec, disable_dropout, renderer_for, save_model
from trimtab.objectives.preference import DPO, KTO, Preference
from trimtab.rewards.score import Rewards, RewardSpec
from trimtab.rewards.shape import Shaper, ShapeSpec
from trimtab.runs import Run
from trimtab.runs.console import console
from trimtab.sample.sampler import SamplingConfig
from trimtab.train.dpo import margins
from trimtab.train.loop import fit
from trimtab.train.reference import NAME, Anchor
from trimtab.train.rollouts import Rollouts, describe, extremes, nothing_scored, sample_rows
from trimtab.train.run_facts import record, template_facts
from trimtab.train.trainer import LoopSpec, OptimSpec, Part, Trainer
from trimtab.types import Completion, Group


class OnlineConfig(Config):
    """Configuration of ``trimtab online_dpo``."""

    renamed: ClassVar[dict[str, str]] = {"prompts": "batch_size", "answers": "num_completions"}
    out: str = "runs/online_dpo"
    """The run folder."""
    model: ModelSpec
    """Trained, and the reference as it is before the first step."""
    reference: ModelSpec | None = None
    """Another model as reference; without it, ``model`` at its start (adapters off)."""
    data: DataSpec
    """Prompts; other columns go to the rewards."""
    rewards: tuple[RewardSpec, ...] = Field(min_length=1)
    """Who chooses: the weighted sum of models, functions and judges; weight 0 only watches."""
    shape: ShapeSpec = ShapeSpec()
    """Penalties of the weighted sum, such as ``truncated`` for answers cut by the limit."""
    objective: Preference = DPO()
    """Any method on pairs."""
    num_completions: int = Field(default=2, ge=2)
    """Sampled for each prompt; the best and the worst of them are the pair."""
    sampling: SamplingConfig = SamplingConfig()
    steps: int = Field(default=100, gt=0)
    """Optimiser steps, each on answers of its own."""
    batch_size: int = Field(default=64, gt=0)
    """Prompts a step."""
    optim: OptimSpec = OptimSpec(lr=1e-6)
    loop: LoopSpec = LoopSpec()

    @model_validator(mode="after")
    def _sane(self) -> OnlineConfig:
        name = self.objective.name
        if isinstance(self.objective, KTO):
            raise ValueError(
                "kto learns from labels of single answers, and here answers are compared; "
                "choose a method on pairs, such as dpo"
            )
        if self.reference is not None and not self.objective.referenced:
            raise ValueError(f"objective {name} reads no reference here; drop the key reference")
        if self.sampling.temperature <= 0:
            raise ValueError(
                "sampling.temperature must be above 0: greedy answers to one prompt are all the "
                "same, and there is nothing to choose between"
            )
        if all(r.weight == 0 for r in self.rewards):
            raise ValueError("every reward has weight 0: there is nothing to choose by")
        return self

    @property
    def unbent(self) -> bool:
        """Whether answers are drawn from the policy as it is."""
        s = self.sampling
        return s.temperature == 1.0 and s.top_p == 1.0 and s.top_k == 0 and s.min_p == 0.0


def ranked(groups: Sequence[Group]) -> tuple[list[Group], int, int]:
    """The pairs: each prompt's best (rank 0) and worst (rank 1) scored answer, as sampled.

    Returns:
        The pairs; how many prompts tie, and how many have fewer than two scored answers: those
        give none.
    """
    pairs: list[Group] = []
    ties = lone = 0
    for g in groups:
        scored = [c for c in g.completions if c.reward is not None]
        found = extremes(scored) if len(scored) > 1 else None
        if found is not None:
            best, worst = found
            pairs.append(replace(g, completions=[replace(best, rank=0), replace(worst, rank=1)]))
        elif len(scored) > 1:
            ties += 1
        else:
            lone += 1
    return pairs, ties, lone


def _kl(done: Sequence[Completion]) -> float:
    """Mean over answers of log pi - log ref, nats: the KL to the reference, estimated by k1."""
    return float(np.mean([float((c.tokens["sampler_logp"] - c.tokens[NAME]).sum()) for c in done]))


class OnlineStage:
    """An online direct method as a stage of the loop."""

    name = "online_dpo"

    def __init__(self, config: OnlineConfig) -> None:
        c = self.config = config
        self.renderer = renderer_for(c.model, c.data)
        tokenizer = self.renderer.tokenizer
        prompts = load_groups(c.data, formats.prompts, self.renderer.prompt)
        rewards = Rewards(c.rewards, tokenizer, c.loop.token_budget, c.model.device)
        self.lm = LM.load(c.model)
        # Dropout off: the log-ratio compares one function with another, not two noises.
        disable_dropout(self.lm.model)
        self.reference: Anchor | None = None
        if c.objective.referenced:
            self.reference = Anchor(self.lm, c.reference, tokenizer)
        self.rollouts = Rollouts(prompts, self.lm, self.renderer, rewards, c.sampling, c.loop.seed)
        self.shaper = Shaper(c.shape)
        self.steps = c.steps
        self.trainer = Trainer({"model": self.lm.model}, {"model": c.optim}, c.steps, c.loop)
        self.last: list[Group] = []

    def recorded(self, run: Run) -> OnlineStage:
        """Itself, with ``facts.json`` written."""
        c = self.config
        known = template_facts(
            self.lm, self.renderer, c.model, self.rollouts.prompts, c.loop.token_budget
        )
        record(run, self.name, self.renderer, self.rollouts.prompts, **known)
        return self

    def forward(self, pack: Pack) -> Output:
        """Log-probs of the trained tokens."""
        return Output(logp_C=self.lm.logps(self.lm.states(pack), pack, entropy=False)[0])

    def step(self, index: int) -> dict[str, float]:
        """Answers, choices, one update; none where every prompt ties.

        Raises:
            DataError: not one prompt has two answers that could be scored.
        """
        c = self.config
        groups = self.last = self.rollouts(
            index, c.batch_size, c.num_completions, self.trainer.updates
        )
        done = [x for g in groups for x in g.completions]
        metrics = describe(done) | self.shaper(groups)
        if self.reference is not None:
            self.reference.annotate(groups, c.loop.token_budget)
            if c.unbent:
                metrics["objective/kl"] = _kl(done)
        pairs, ties, lone = ranked(groups)
        if lone == len(groups):
            raise nothing_scored(f"step {index}", done)
        if pairs:
            part = Part(pairs, c.objective, self.forward, self.lm.exact)
            metrics |= margins(self.trainer.update([part]))
        # Of prompts; the objective's own "ties" sees only what was kept.
        return metrics | {
            "ties": ties / len(groups),
            "pairs": float(len(pairs)),
            "pairs/unscored": lone / len(groups),
        }

    def evaluate(self, index: int) -> dict[str, float]:
        """See ``Stage``; comparing policies is a stage of its own."""
        return {}

    def samples(self) -> list[dict[str, Any]]:
        """The last step's prompts, completions, scores."""
        return sample_rows(self.last)

    def state(self) -> dict[str, Any]:
        """The running statistics of rewards; all else follows from the step."""
        return {"shaper": self.shaper.state(), "rewards": self.rollouts.rewards.state()}

    def load(self, state: dict[str, Any]) -> None:
        """See ``Stage``."""
        self.shaper.load(state["shaper"])
        self.rollouts.rewards.load(state["rewards"])

    def export(self, folder: Path) -> None:
        """See ``Stage``."""
        save_model(self.lm.model, folder, self.renderer.tokenizer, self.lm.plain)

    def line(self, metrics: dict[str, float]) -> str:
        """See ``Stage``."""
        right = metrics.get("rewards/accuracies", math.nan)
        return f"reward {metrics['reward/mean']:+.3f}  right {right:.2f}"


def main(config: OnlineConfig) -> dict[str, float]:
    """Run the stage; the policy is in ``out``/model."""
    run = Run(config.out, config.model_dump(mode="json"), config.loop.report_to)
    figures = fit(OnlineStage(config).recorded(run), run, config.loop)
    parts = ", ".join(
        f"{r.name} {figures.get(f'reward/{r.name}', math.nan):+.3f}" for r in config.rewards
    )
    kl = f", KL {figures['objective/kl']:.2f} nats" if "objective/kl" in figures else ""
    ties = figures.get("ties", math.nan)
    console.print(
        f"[bold]online {config.objective.name}[/bold]: {parts}{kl}, {ties:.0%} of the last prompts "
        f"tied -> {config.out}/model"
    )
    return figures
