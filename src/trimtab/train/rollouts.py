"""What online stages share: prompts, the sampling policy, scored completions."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import numpy as np
import torch
from peft import PeftModel
from pydantic import model_validator

from trimtab.data import formats
from trimtab.data.dataset import load_groups
from trimtab.data.pack import Output, Pack
from trimtab.errors import DataError
from trimtab.models.load import LM, ModelSpec, disable_dropout
from trimtab.rewards.shape import Shaper, ShapeSpec
from trimtab.rewards.weighted_sum import Rewards, Scoring
from trimtab.rollout.ahead import Ahead, staleness
from trimtab.rollout.collector import collect
from trimtab.rollout.engine import Engine, update
from trimtab.rollout.engines.factory import make_engine
from trimtab.rollout.policy_weights import PolicyWeights
from trimtab.rollout.rollout_spec import RolloutSpec
from trimtab.sample.sampler import SamplingConfig
from trimtab.stats.order_stats import pick
from trimtab.train.reference import Reference
from trimtab.train.run_facts import template_facts
from trimtab.train.stage import Metrics, Stage, StageConfig
from trimtab.train.trainer import batch_indices
from trimtab.types import Completion, Group, Row


class RolloutConfig(StageConfig):
    """Keys of a stage that trains on what its policy samples; ``data`` has the prompts."""

    reference: ModelSpec | None = None
    """Another model as the frozen reference; without it, ``model`` before the first step."""
    shape: ShapeSpec = ShapeSpec()
    """Whitening, clipping and penalties of the weighted sum of rewards."""
    sampling: SamplingConfig = SamplingConfig()
    rollout: RolloutSpec = RolloutSpec()
    """Which engine samples completions."""

    @model_validator(mode="after")
    def _check_rollout(self) -> Self:
        self.rollout.transport(self.model.trains_adapters, cuda=False)
        return self


C = TypeVar("C", bound=RolloutConfig)
START_ROLLOUTS = 64
"""Completions per table of samples that are scored under the start model."""
START_PARAMETERS = 1_000_000_000
"""A larger start model is not loaded again for that."""


class RolloutStage(Stage[C, LM]):
    """A stage that samples completions of prompts, scores them and trains on them.

    Attributes:
        prompts: Groups without completions.
        lm: The policy.
        engine: Samples from the policy.
        rewards: Scores completions in place.
        reference: The frozen reference, where the stage needs one.
        synced: Version of the engine's weights; None if it must get them before it samples.
        ahead: Collects groups of later iterations, with ``rollout.max_staleness``.
        last: The groups of the last iteration.
    """

    def __init__(self, config: C) -> None:
        super().__init__(config)
        self.prompts = load_groups(
            config.data, formats.prompts, self.renderer.prompt, counts=self.read_counts
        )
        self.rewards = self.load_rewards()
        self.lm = self.network = LM.load(config.model)
        # Without dropout, log-probs of two forwards are of the same function.
        disable_dropout(self.lm.model)
        self.reference: Reference | None = None
        if self.needs_reference:
            self.reference = Reference(self.lm, config.reference, self.renderer.tokenizer)
        self.shaper = Shaper(self.shape())
        self.engine: Engine = make_engine(
            config.rollout,
            self.lm,
            self.renderer,
            self.prompts,
            config.sampling,
            Path(config.out),
        )
        self.synced: int | None = None
        self.ahead: Ahead | None = None
        self.last: list[Group] = []

    @abstractmethod
    def load_rewards(self) -> Rewards | Scoring:
        """What scores completions."""

    def prepare(self, rewards: Rewards | Scoring) -> None:
        """Tell rewards the columns of all prompts, and the number of optimiser steps."""
        rewards.prepare({k for g in self.prompts for k in g.extra}, self.trainer.total)

    @property
    @abstractmethod
    def needs_reference(self) -> bool:
        """Whether log-probs of a reference are needed."""

    def shape(self) -> ShapeSpec:
        """How rewards are shaped."""
        return self.config.shape

    @property
    def data(self) -> tuple[list[Group], list[Group]]:
        """The prompts; nothing is held out."""
        return self.prompts, []

    def facts(self) -> Row:
        """How prompts look under the model's own chat template."""
        c = self.config
        return template_facts(self.lm, self.renderer, c.model, self.prompts, c.loop.token_budget)

    def sync(self) -> None:
        """Give the engine the current weights, unless it has them."""
        version = self.trainer.updates
        if self.synced != version:
            weights = PolicyWeights(self.lm, self.renderer.tokenizer, self.config.loop.token_budget)
            update(self.engine, version, weights)
            self.synced = version

    def sample(self, index: int, count: int, n: int, attempt: int = 0) -> list[Group]:
        """``count`` prompts of iteration ``index`` with ``n`` scored completions each.

        The prompts and every random draw follow from seed, iteration and attempt, so a resumed run
        samples what an uninterrupted one would.

        Args:
            index: The iteration.
            count: Number of prompts.
            n: Completions per prompt.
            attempt: 0 for the first draw, n for the n-th resampling of other prompts.

        With ``rollout.max_staleness`` these are the next prompts, sampled with weights of up to so many
        iterations before.
        """
        if self.ahead is not None:
            return self.ahead.take(index, count)
        seed = self.config.loop.seed
        # Other passes over the prompts, which also depend on the iteration alone.
        picked = batch_indices(len(self.prompts), count, index, seed + 7919 * attempt)
        key = (seed, index, attempt) if attempt else (seed, index)
        self.sync()
        return self.collect([self.prompts[i] for i in picked], n, key)

    def collect(self, prompts: Sequence[Group], n: int, key: tuple[int, ...]) -> list[Group]:
        """``n`` scored completions of each prompt; ``key`` starts the key of every random stream."""
        groups = self.rollouts(prompts, n, key)
        self.score(groups)
        return groups

    def rollouts(
        self, prompts: Sequence[Group], n: int, key: tuple[int, ...], first: int = 0
    ) -> list[Group]:
        """``n`` completions of each prompt, without rewards.

        Args:
            first: Index of the first prompt in its iteration.
        """
        return collect(
            self.engine, self.renderer, prompts, self.config.sampling, n=n, key=key, first=first
        )

    def score(self, groups: Sequence[Group]) -> None:
        """Fill in the rewards."""
        self.rewards(groups)

    def staleness(self, groups: Sequence[Group]) -> Metrics:
        """How old the completions are, in optimiser steps; empty where sampling and training take turns."""
        return {} if self.ahead is None else staleness(groups, self.trainer.updates)

    def forward(self, pack: Pack) -> Output:
        """Log-probs [C] of the trained tokens."""
        return Output(logp_C=self.lm.logps(self.lm.states(pack), pack, entropy=False)[0])

    def samples(self, metrics: Metrics) -> list[Row]:
        """Prompts, completions and scores of the last iteration.

        Where the method needs no reference, a few completions are scored under the start model, so that
        every run shows how far it went ("kl/start", nats per completion) and how fluent it is.
        """
        if self.reference is None:
            self._score_under_start(first_groups(self.last, START_ROLLOUTS))
        rows = sample_rows(self.last)
        ratios = [r["kl"] for r in rows if "kl" in r]
        if ratios:
            metrics["kl/start"] = float(np.mean(ratios))
        return rows

    def _score_under_start(self, groups: Sequence[Group]) -> None:
        """Put "ref_logp" on the tokens of ``groups``.

        An adapter's start model is the policy without it. Otherwise the start model is loaded for the
        moment; above a billion parameters, or from random weights, nothing is scored.
        """
        spec: ModelSpec | None = None
        if not isinstance(self.lm.model, PeftModel):
            spec = self.config.reference or self.config.model
            large = sum(p.numel() for p in self.lm.model.parameters()) > START_PARAMETERS
            if large or spec.path.endswith(".json"):
                return
        with torch.random.fork_rng(devices=[]):
            start = Reference(self.lm, spec, self.renderer.tokenizer)
        temperature = self.config.sampling.temperature
        start.annotate(groups, self.config.loop.token_budget, temperature)

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()

    def state(self) -> dict[str, Any]:
        """The running statistics of rewards, and the groups that were collected ahead."""
        # First: a group that has arrived may fail the run.
        ahead = self.ahead and self.ahead.state()
        return {"shaper": self.shaper.state(), "rewards": self.rewards.state(), "ahead": ahead}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore ``state``."""
        self.shaper.load(state["shaper"])
        self.rewards.load(state["rewards"])
        if self.ahead is not None and state.get("ahead"):
            self.ahead.load(state["ahead"])


def first_groups(groups: Sequence[Group], completions: int) -> list[Group]:
    """The first groups, until they have so many completions."""
    total = np.cumsum([len(g.completions) for g in groups])
    return list(groups[: 1 + int(np.searchsorted(total, completions))])


def nothing_scored(where: str, completions: Sequence[Completion], needed: int = 1) -> DataError:
    """The error to raise when no prompt of an iteration has ``needed`` completions with a reward."""
    scored = sum(c.reward is not None for c in completions)
    failures: dict[str, str] = {}
    for c in completions:
        for name, s in c.scores.items():
            if not s.ok and "/" not in name:
                failures.setdefault(name, f"{name} was {s.status} ({s.detail})")
    first = "; ".join(failures.values())
    if scored == 0:
        return DataError(f"{where}: no completion could be scored; the first failures: {first}")
    return DataError(
        f"{where}: {scored} of {len(completions)} completions have a reward, but no prompt has "
        f"{needed}, which are needed to compare completions of one prompt; the first failures: {first}"
    )


def best_and_worst(completions: Sequence[Completion]) -> tuple[Completion, Completion] | None:
    """The best and the worst of one prompt's scored completions, the first of equal ones.

    None if the two have equal rewards or equal tokens.
    """
    rewards = [cast(float, c.reward) for c in completions]
    best, worst = completions[pick(rewards)], completions[pick([-r for r in rewards])]
    same = best.reward == worst.reward or np.array_equal(best.ids, worst.ids)
    return None if same else (best, worst)


def rollout_metrics(completions: Sequence[Completion]) -> dict[str, float]:
    """Mean rewards by part, lengths, finish reasons and failures.

    "reward/NAME/unscored" is the share of completions that this part did not score, where there are
    any.
    """
    scored = [c.reward for c in completions if c.reward is not None]
    metrics = {
        "reward/mean": float(np.mean(scored)) if scored else math.nan,
        "reward/std": float(np.std(scored)) if scored else math.nan,
        "reward/unscored": 1.0 - len(scored) / max(1, len(completions)),
        "completion/length": float(np.mean([c.trained for c in completions])),
        "completion/truncated": float(np.mean([c.truncated for c in completions])),
    }
    for name in dict.fromkeys(name for c in completions for name in c.scores):
        scores = [c.scores.get(name) for c in completions]
        values = [s.value for s in scores if s is not None and s.value is not None]
        metrics[f"reward/{name}"] = float(np.mean(values)) if values else math.nan
        if len(values) < len(completions) and "/" not in name:
            metrics[f"reward/{name}/unscored"] = 1.0 - len(values) / len(completions)
    return metrics


def sample_rows(groups: Sequence[Group]) -> list[Row]:
    """Prompts, completions and scores as rows for ``samples/``."""
    return [
        {
            "prompt": g.text,
            "completion": c.text,
            "reward": c.reward,
            "scores": {k: s.value if s.ok else s.status for k, s in c.scores.items()},
            "finish": c.finish,
            "tokens": int(c.emitted.sum()),
            "version": c.version,
            "id": g.id,
            "index": i,
            **({"turns": len(c.turns), "status": c.status} if c.turns else {}),
            **_reference_metrics(c),
        }
        for g in groups
        for i, c in enumerate(g.completions)
    ]


def log_ratio(c: Completion) -> float | None:
    """Summed log-ratio of a rollout to the reference, nats; None without reference log-probs."""
    logp_T, ref_T = c.tokens.get("sampler_logp"), c.tokens.get("ref_logp")
    if logp_T is None or ref_T is None:
        return None
    return float((logp_T - ref_T)[c.emitted].sum())


def episode_kls(groups: Sequence[Group]) -> list[float]:
    """``log_ratio`` of each episode that has one."""
    sums: list[float] = []
    for episode in (e for g in groups for e in g.episodes):
        ratios = [ratio for c in episode if (ratio := log_ratio(c)) is not None]
        if ratios:
            sums.append(math.fsum(ratios))
    return sums


def _reference_metrics(c: Completion) -> dict[str, float]:
    """The completion's KL to the reference and its NLL under it, nats; empty without log-probs."""
    kl = log_ratio(c)
    if kl is None:
        return {}
    ref = c.tokens["ref_logp"][c.emitted]
    return {"kl": kl, "nll_reference": -float(ref.mean()) if len(ref) else 0.0}
