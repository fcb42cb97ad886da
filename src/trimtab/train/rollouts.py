"""What online stages share: prompts, the sampling policy, scored completions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from pydantic import model_validator
from torch import nn

from trimtab import ranks
from trimtab.data import formats
from trimtab.data.dataset import load_groups
from trimtab.data.pack import Output, Pack
from trimtab.errors import ConfigError
from trimtab.models.load import LM, ModelSpec, disable_dropout
from trimtab.models.lora import has_adapter
from trimtab.models.packed import PackedLM
from trimtab.models.shard import gathered, shard
from trimtab.rewards.shape import Shaper, ShapeSpec
from trimtab.rewards.weighted_sum import Rewards, Scoring
from trimtab.rollout.ahead import Ahead, staleness
from trimtab.rollout.collector import collect
from trimtab.rollout.dealt_sampler import DealtSampler
from trimtab.rollout.engine import Engine, update
from trimtab.rollout.engines.factory import make_engine
from trimtab.rollout.engines.native import NativeEngine
from trimtab.rollout.policy_weights import PolicyWeights
from trimtab.rollout.rollout_spec import RolloutSpec
from trimtab.sample.sampler import SamplingConfig
from trimtab.train.reference import Reference
from trimtab.train.run_facts import template_facts
from trimtab.train.scored import sample_rows
from trimtab.train.stage import Metrics, Stage, StageConfig
from trimtab.train.trainer import batch_indices
from trimtab.types import Group, Row


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
        root: The policy as a module from packs to outputs, with its value head.
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
        self.root = PackedLM(self.lm, self.make_value_head())
        self.sharded = config.model.shard == "full"
        self.reference: Reference | None = None
        if self.needs_reference:
            self.reference = self.load_reference(config.reference)
        self.shaper = Shaper(self.shape())
        self.engine = self.load_engine()
        if self.sharded:
            shard(self.root)
        self.synced: int | None = None
        self.ahead: Ahead | None = None
        self.last: list[Group] = []

    def load_engine(self) -> Engine:
        """What samples: every rank takes part in the native engine, rank 0 alone calls servers."""
        c, here = self.config, ranks.current()
        if c.rollout.engine != "native" and self.sharded and c.model.trains_adapters:
            raise ConfigError(
                "rollout.engine: servers cannot be sent the adapters of a sharded model; set "
                "model.shard: none (adapters need little memory), or rollout.engine: native"
            )
        if c.rollout.engine != "native" and here.is_main:
            out = Path(c.out)
            return make_engine(
                c.rollout,
                self.lm,
                self.renderer,
                self.prompts,
                c.sampling,
                out,
                trainers=here.world,
                on_ray=c.launch.type == "ray",
            )
        sampler = DealtSampler(
            self.lm.plain_attention(),
            self.renderer.tokenizer,
            stop_ids=self.renderer.stop_ids,
            mixed=self.lm.mixed,
        )
        sampler.root = self.root
        sampler.deals = self.deals_requests
        return NativeEngine(sampler)

    def make_value_head(self) -> nn.Linear | None:
        """The value head on the policy's trunk, where the method has one."""
        return None

    def load_reference(self, spec: ModelSpec | None) -> Reference:
        """The reference of ``spec``; without it, the policy before its first step."""
        return Reference(self.root, spec, self.renderer.tokenizer, sharded=self.sharded)

    @abstractmethod
    def load_rewards(self) -> Rewards | Scoring:
        """What scores completions; only rank 0 loads and calls its parts."""

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
        if self.samples_ahead:
            return self._on_main(lambda: self._take(index, count))
        seed = self.config.loop.seed
        # Other passes over the prompts, which also depend on the iteration alone.
        picked = batch_indices(len(self.prompts), count, index, seed + 7919 * attempt)
        key = (seed, index, attempt) if attempt else (seed, index)
        return self.collect([self.prompts[i] for i in picked], n, key)

    def collect(self, prompts: Sequence[Group], n: int, key: tuple[int, ...]) -> list[Group]:
        """``n`` scored completions of each prompt, on every rank; ``key`` starts the key of every
        random stream."""
        groups = self.complete(prompts, n, key)
        ranks.current().score(self.score)(groups)
        return groups

    def complete(self, prompts: Sequence[Group], n: int, key: tuple[int, ...]) -> list[Group]:
        """``n`` completions of each prompt by the current policy, without rewards, on every rank."""

        def sample() -> list[Group]:
            self.sync()
            return self.rollouts(prompts, n, key)

        return sample() if self.deals_requests else self._on_main(sample)

    def _on_main(self, sample: Callable[[], list[Group]]) -> list[Group]:
        """The groups that ``sample`` returns on rank 0, which alone calls it, on every rank."""
        here = ranks.current()
        if here.world == 1:
            return sample()
        groups: list[Group] = []
        with gathered(self.root):
            here.on_main(lambda: groups.extend(sample()))
        received = here.broadcast(groups)
        if not here.is_main:
            columns = {p.id: p.extra for p in self.prompts}
            for group in received:
                group.extra = columns.get(group.id, {})
        return received

    @property
    def deals_requests(self) -> bool:
        """Whether every rank samples a part; servers are called, and work ahead is done, by rank 0."""
        return self.config.rollout.engine == "native" and not self.samples_ahead

    @property
    def samples_ahead(self) -> bool:
        """Whether completions may be older than the weights that they train."""
        return self.config.rollout.max_staleness > 0

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
        return staleness(groups, self.trainer.updates) if self.samples_ahead else {}

    def _take(self, index: int, count: int) -> list[Group]:
        assert self.ahead is not None
        return self.ahead.take(index, count)

    def forward(self, pack: Pack) -> Output:
        """Log-probs [C] of the trained tokens."""
        return self.root.outputs(pack, entropy=False)

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
        if not has_adapter(self.lm.model):
            spec = self.config.reference or self.config.model
            large = sum(p.numel() for p in self.lm.model.parameters()) > START_PARAMETERS
            if large or spec.path.endswith(".json"):
                return
        with torch.random.fork_rng(devices=[]):
            start = self.load_reference(spec)
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
        if ranks.current().is_main:
            self.rewards.load(state["rewards"])
        if self.ahead is not None and state.get("ahead"):
            self.ahead.load(state["ahead"])


def first_groups(groups: Sequence[Group], completions: int) -> list[Group]:
    """The first groups, until they have so many completions."""
    total = np.cumsum([len(g.completions) for g in groups])
    return list(groups[: 1 + int(np.searchsorted(total, completions))])
