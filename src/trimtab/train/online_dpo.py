"""Online preference optimisation (2402.04792): at each step the policy completes prompts, a judge or a
reward chooses the best and the worst completion, and the pairs are trained on at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from trimtab import ranks
from trimtab.objectives.kto import KTO
from trimtab.objectives.preference import DPO, Preference
from trimtab.rewards.part_config import RewardSpec
from trimtab.rewards.weighted_sum import Rewards
from trimtab.train.ahead_source import collect_ahead
from trimtab.train.dpo import with_margins
from trimtab.train.gradients import Part
from trimtab.train.loop import run_stage
from trimtab.train.rollouts import RolloutConfig, RolloutStage
from trimtab.train.scored import best_and_worst, episode_kls, nothing_scored, rollout_metrics
from trimtab.train.stage import Metrics
from trimtab.train.trainer import Trainer
from trimtab.types import Group


class OnlineConfig(RolloutConfig):
    """Configuration of ``trimtab online-dpo``.

    ``model`` before the first step is also the reference. ``data`` has prompts; other columns go to
    the rewards.
    """

    renamed: ClassVar[dict[str, str]] = {"prompts": "batch_size", "answers": "num_completions"}
    extent_keys: ClassVar[frozenset[str]] = frozenset({"steps"})
    stage: Literal["online_dpo"] = "online_dpo"
    out: str = "runs/online_dpo"
    rewards: tuple[RewardSpec, ...] = Field(min_length=1)
    """What chooses: the weighted sum of models, functions and judges; weight 0 only logs."""
    objective: Preference = DPO()
    """Any method on pairs."""
    num_completions: int = Field(default=2, ge=2)
    """Completions per prompt; the best and the worst of them are the pair."""
    steps: int = Field(default=100, gt=0)
    """Optimiser steps, each on newly sampled completions."""
    batch_size: int = Field(default=64, gt=0)
    """Prompts per step."""

    @model_validator(mode="after")
    def _check(self) -> OnlineConfig:
        if isinstance(self.objective, KTO):
            raise ValueError(
                "kto learns from labels of single completions, and here completions are compared; "
                "choose a method on pairs, such as dpo"
            )
        if self.reference is not None and not self.objective.referenced:
            raise ValueError(
                f"objective {self.objective.name} uses no reference; remove the key reference"
            )
        if self.sampling.temperature <= 0:
            raise ValueError(
                "sampling.temperature must be above 0: greedy completions of one prompt are all "
                "the same, so there is nothing to choose between"
            )
        if all(r.weight == 0 for r in self.rewards):
            raise ValueError("every reward has weight 0, so nothing chooses; set a weight above 0")
        return self

    @property
    def samples_from_policy(self) -> bool:
        """Whether completions are drawn from the policy's own distribution, neither cut nor scaled."""
        s = self.sampling
        return s.temperature == 1.0 and not s.filtered


def ranked(groups: Sequence[Group]) -> tuple[list[Group], int, int]:
    """Each prompt's best (rank 0) and worst (rank 1) scored completion, as sampled.

    Returns:
        The pairs; the number of prompts that tie, and the number with fewer than two scored
        completions: those give no pair.
    """
    pairs: list[Group] = []
    ties = unscored = 0
    for g in groups:
        scored = [c for c in g.completions if c.reward is not None]
        if len(scored) < 2:
            unscored += 1
        elif (pair := best_and_worst(scored)) is None:
            ties += 1
        else:
            completions = [replace(c, rank=rank) for rank, c in enumerate(pair)]
            pairs.append(replace(g, completions=completions))
    return pairs, ties, unscored


class OnlineStage(RolloutStage[OnlineConfig]):
    """Trains a policy on pairs of its own completions."""

    rate_of = "preference"

    def __init__(self, config: OnlineConfig) -> None:
        super().__init__(config)
        self.steps = config.steps
        self.trainer = Trainer(
            {"model": self.lm.model},
            {"model": config.optim},
            config.steps,
            config.loop,
            self.rate_of,
        )
        self.prepare(self.rewards)
        self.ahead = collect_ahead(self, config.batch_size, config.num_completions)

    @property
    def title(self) -> str:
        """The objective's name."""
        return f"online {self.config.objective.name}"

    @property
    def needs_reference(self) -> bool:
        """Whether the objective reads the reference's log-probs."""
        return self.config.objective.referenced

    def load_rewards(self) -> Rewards:
        """The list of rewards."""
        c = self.config
        rewards = ranks.current().main_only(c.rewards)
        return Rewards(rewards, self.renderer.tokenizer, c.loop.token_budget, c.model.device)

    def step(self, index: int) -> Metrics:
        """Sample, choose, and one optimiser step; no optimiser step where every prompt ties.

        Raises:
            DataError: no prompt has two scored completions.
        """
        c = self.config
        groups = self.last = self.sample(index, c.batch_size, c.num_completions)
        completions = [x for g in groups for x in g.completions]
        metrics = (
            rollout_metrics(completions, self.renderer.stop_ids)
            | self.staleness(groups)
            | self.shaper(groups)
        )
        if self.reference is not None:
            self.reference.annotate(groups, c.loop.token_budget)
            if c.samples_from_policy:
                # The KL to the reference, nats per completion, by the estimator k1.
                kls = episode_kls(groups)
                metrics["objective/kl"] = float(np.mean(kls))
        pairs, ties, unscored = ranked(groups)
        if unscored == len(groups):
            raise nothing_scored(f"step {index}", completions, 2)
        if pairs:
            part = Part(pairs, c.objective.at(0.0), self.forward, self.lm.exact)
            metrics |= with_margins(self.trainer.update([part]))
        # Shares of all prompts; the objective's own "ties" counts pairs only.
        return metrics | {
            "ties": ties / len(groups),
            "pairs": float(len(pairs)),
            "pairs/unscored": unscored / len(groups),
        }

    def progress(self, metrics: Metrics) -> str:
        """Reward and accuracy of the last step."""
        accuracy = metrics.get("rewards/accuracies", math.nan)
        return f"reward {metrics['reward/mean']:+.3f}  accuracy {accuracy:.2f}"

    def summary(self, metrics: Metrics) -> str:
        """Mean of each reward, KL and ties at the last step."""
        rewards = ", ".join(
            f"{r.name} {metrics.get(f'reward/{r.name}', math.nan):+.3f}"
            for r in self.config.rewards
        )
        kl = f", KL {metrics['objective/kl']:.2f} nats" if "objective/kl" in metrics else ""
        return f"{rewards}{kl}, {metrics.get('ties', math.nan):.0%} of the last prompts tied"


def main(config: OnlineConfig) -> Metrics:
    """Train on the policy's own completions; the policy is exported to ``out``/model."""
    return run_stage(OnlineStage, config)
