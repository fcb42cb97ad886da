"""Online RL: sample, score, assign advantages, update, for every ``objectives.policy`` method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from trimtab import ranks
from trimtab.data import formats
from trimtab.data.dataset import load_groups
from trimtab.data.pack import Output, Pack
from trimtab.errors import ConfigError, DataError
from trimtab.models.heads import Scorer
from trimtab.models.packed import PackedScorer
from trimtab.models.routing import Routing
from trimtab.models.shard import shard
from trimtab.objectives.kl import KLController
from trimtab.objectives.nll import SFT
from trimtab.objectives.policy import PolicyMethod
from trimtab.rewards.shape import ShapeSpec
from trimtab.rewards.weighted_sum import Scoring
from trimtab.rollout.agents import Agents, load_environments
from trimtab.rollout.environment import Environments
from trimtab.rollout.episode_scores import score_episodes
from trimtab.train.advantages import assign_advantages
from trimtab.train.ahead_source import collect_ahead, with_importance_weights
from trimtab.train.deal import ENTROPY, annotate
from trimtab.train.gradients import Part
from trimtab.train.guard import Guard
from trimtab.train.loop import open_run, train
from trimtab.train.rl_config import RLConfig
from trimtab.train.rollouts import RolloutStage
from trimtab.train.scored import nothing_scored, rollout_metrics
from trimtab.train.stage import Metrics
from trimtab.train.state_values import MonteCarloValues
from trimtab.train.trainer import Trainer, batch_indices
from trimtab.types import Completion, Group


class RLStage(RolloutStage[RLConfig]):
    """Trains a policy on the rewards of its rollouts."""

    rate_of = "rl"

    def __init__(self, config: RLConfig) -> None:
        super().__init__(config)
        method = config.method
        longest = {"max_length": method.max_length or config.max_tokens}
        self.method: PolicyMethod = method.model_copy(update=longest)
        self.kl = KLController(config.method.kl)
        self.temperature = config.sampling.temperature
        self.state_values: MonteCarloValues | None = None
        if method.advantage.values == "monte-carlo":
            if not self.deals_requests and ranks.current().world > 1:
                raise ConfigError(
                    "method.advantage.values: monte-carlo with several trainers needs "
                    "rollout.engine: native without max_staleness and without episodes; use one trainer"
                )
            score = ranks.current().score(self.scoring.outcome)
            self.state_values = MonteCarloValues(
                config.monte_carlo, self.engine, self.renderer, score, config.sampling,
                config.loop.seed,
            )  # fmt: skip
        modules: dict[str, nn.Module] = {"policy": self.lm.model}
        self.critic: Scorer | None = None
        if method.needs_critic:
            modules["critic"] = self._load_critic()
        self.routing = Routing(self.lm, config.routing)
        self.ptx: list[Group] = []
        if config.ptx is not None:
            self.ptx = load_groups(
                config.ptx.data,
                formats.demonstrations,
                self.renderer.demonstration,
                counts=self.read_counts,
            )
        self.steps = config.steps
        optim = {"policy": config.optim, "critic": config.critic.optim}
        self.trainer = Trainer(
            modules,
            {n: optim[n] for n in modules},
            config.steps * method.updates.steps,
            config.loop,
            self.rate_of,
        )
        self.prepare(self.rewards)
        self.environments: Environments | Agents | None = None
        if config.episodes is not None:
            text_config = cast(Any, self.lm.model).config.get_text_config()
            positions = getattr(text_config, "max_position_embeddings", None)
            self.environments = load_environments(
                config.episodes, config.tools, self.renderer, positions, bool(config.rewards)
            )
        self.ahead = collect_ahead(self, config.batch_size, method.group_size)
        if self.samples_ahead and config.rollout.importance_weights:
            self.method = with_importance_weights(self.method)
        self.guard: Guard | None = None
        if config.audit is not None:
            rollouts = config.steps * config.batch_size * method.group_size
            self.guard = Guard(self, config.audit, config.rewards, self.scoring.rewards, rollouts)

    def make_value_head(self) -> nn.Linear | None:
        """A linear layer that starts at 0, for a critic on the policy's trunk."""
        c = self.config
        if not c.method.needs_critic or c.critic.type == "separate":
            return None
        head = nn.Linear(int(self.lm.logit_width), 1, device=self.lm.device)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return head

    def _load_critic(self) -> nn.Module:
        """The critic's trained module: a model of its own, or the value head on the policy's trunk."""
        c = self.config
        if self.root.value_head is not None:
            return self.root.value_head
        start = c.critic.model or c.model.model_copy(update={"lora": None, "adapter": "merge"})
        pad_id = int(self.renderer.tokenizer.pad_token_id)
        self.critic = Scorer.load(start, pad_id=pad_id, zero=True)
        self.critic_root = PackedScorer(self.critic)
        if self.sharded:
            shard(self.critic_root)
        return self.critic.model

    @property
    def title(self) -> str:
        """The method's name."""
        return self.config.method.name

    @property
    def needs_reference(self) -> bool:
        """Whether the method or the audit reads the reference's log-probs."""
        return self.config.method.needs_reference or self.config.audit is not None

    def load_rewards(self) -> Scoring:
        """The rewards of sequences, steps and tokens."""
        c = self.config
        # The other ranks receive the scores.
        dense = (c.process, c.implicit) if ranks.current().is_main else (None, None)
        rewards = ranks.current().main_only(c.rewards)
        self.scoring = Scoring(rewards, *dense, self.renderer, c.loop.token_budget, c.model.device)
        return self.scoring

    def shape(self) -> ShapeSpec:
        """The run's shaping, with the method's penalties where the run sets none."""
        return self.config.shaping

    def rollouts(
        self, prompts: Sequence[Group], n: int, key: tuple[int, ...], first: int = 0
    ) -> list[Group]:
        """``n`` completions of each prompt, or episodes where there are tools."""
        if self.environments is None:
            return super().rollouts(prompts, n, key, first)
        # Its draws are keyed by the prompt's index in the call.
        key = (*key, first) if first else key
        return self.environments(self.engine, prompts, self.config.sampling, n=n, key=key)

    def score(self, groups: Sequence[Group]) -> None:
        """Fill in the rewards, of episodes those of their environment too."""
        if self.environments is None:
            super().score(groups)
        else:
            score_episodes(groups, self.rewards)

    @property
    def deals_requests(self) -> bool:
        """Whether every rank samples a part; an environment runs on rank 0 alone."""
        return super().deals_requests and self.config.episodes is None

    @property
    def share(self) -> bool:
        """Packs serve policy and critic together, so both must allow sharing."""
        return self.lm.exact and (self.critic is None or self.critic.exact)

    def forward(self, pack: Pack) -> Output:
        """Log-probs at the sampling temperature, entropies, and the values of a shared trunk."""
        with self.routing(pack):
            return self.root.outputs(pack, self.temperature, norm=self.method.needs_norms)

    def _value_forward(self, pack: Pack) -> Output:
        return self.critic_root.values(pack)

    @torch.no_grad()
    def _annotate(self, groups: Sequence[Group]) -> dict[str, float]:
        """Put what the method needs on every token: old and reference log-probs, values.

        With one update per batch and no KL in the reward, the training forward gives the old
        log-probs, and only the reference's are computed here.
        """
        method = self.method
        own = method.updates.steps > 1 or method.needs_critic or method.kl.in_reward
        own = own or self.routing.active
        if not own and self.reference is None:
            return {}

        def compute(pack: Pack) -> dict[str, Tensor | None]:
            columns: dict[str, Tensor | None] = {}
            if own:
                out = self.forward(pack)
                value = self._value_forward(pack).value_C if self.critic else out.value_C
                columns = {ENTROPY: out.entropy_C, "old_logp": out.logp_C, "value": value}
            if self.reference is not None:
                ref = self.reference.outputs(pack, self.temperature, norm=method.needs_norms)
                columns |= {"ref_logp": ref.logp_C, "ref_norm": ref.norm_C}
            return columns

        entropy = annotate(
            groups, self.config.loop.token_budget, self.share, self.lm.device, compute
        )
        return {"objective/entropy": entropy} if own else {}

    def rollout(self, index: int) -> tuple[list[Group], Metrics]:
        """Sample and score the batch of iteration ``index``; with dynamic sampling, repeatedly until
        enough prompts have different rewards.

        Raises:
            DataError: no completion could be scored.
        """
        c, method = self.config, self.method
        batch: list[Group] = []
        completions: list[Completion] = []
        episodes: list[Completion] = []
        sampled = unscored = uniform = tries = 0
        while tries == 0 or (
            method.filter.dynamic_sampling
            and len(batch) < c.batch_size
            and tries < method.filter.max_tries
        ):
            wanted = c.batch_size - (len(batch) if self.samples_ahead else 0)
            groups = self.sample(index, wanted, method.group_size, tries)
            before = len(batch)
            completions += [x for g in groups for x in g.completions]
            episodes += [e[-1] for g in groups for e in g.episodes]
            sampled += len(groups)
            tries += 1
            for g in groups:
                g.completions = [x for x in g.completions if x.reward is not None]
                if len(g.episodes) < (2 if method.needs_groups else 1):
                    unscored += 1
                    continue
                is_uniform = method.needs_groups and self._uniform(g)
                uniform += is_uniform
                if not (is_uniform and method.filter.dynamic_sampling):
                    batch.append(g)
            if self.ahead is not None and method.filter.dynamic_sampling:
                self.ahead.drop(len(groups) - (len(batch) - before))
        if unscored == sampled:
            raise nothing_scored(f"step {index}", completions, 2 if method.needs_groups else 1)
        metrics = rollout_metrics(completions, self.renderer.stop_ids, episodes)
        if method.needs_groups:
            metrics["group/uniform"] = uniform / sampled
            metrics["group/unscored"] = unscored / sampled
            metrics["group/tries"] = float(tries)
            metrics["group/idle"] = float(np.mean([*map(self._uniform, batch)])) if batch else 0.0
        return batch[: c.batch_size], metrics

    def _uniform(self, group: Group) -> bool:
        """Whether the unshaped reward is the same for every completion, its dense part included."""
        name = self.method.filter.reward
        if name is not None:
            return len({x.scores[name].value for x in group.completions}) < 2
        dense = self.config.process or self.config.implicit
        watched = dense.name if dense is not None and dense.weight != 0.0 else None
        return len({(x.reward, watched and x.scores[watched].value) for x in group.completions}) < 2

    def step(self, index: int) -> Metrics:
        """Sample a batch and train on it; no optimiser step where dynamic sampling leaves nothing."""
        metrics = self._train(index)
        if self.guard is not None:
            metrics.update(self.guard.act(index))
        return metrics

    def _train(self, index: int) -> Metrics:
        groups, metrics = self.rollout(index)
        self.last = groups
        metrics["kl/beta"] = self.kl.beta
        metrics.update(self.staleness(groups))
        if not groups:
            return metrics
        metrics.update(self.credit(groups, index))
        updates = self._update(groups, index)
        metrics.update(self.routing.metrics())
        for name in updates[0]:
            metrics[name] = float(np.mean([u[name] for u in updates]))
        metrics["policy/updates"] = float(len(updates))
        squared = metrics.pop("sampler/weight_squared", 0.0)
        if squared > 0:
            metrics["sampler/ess"] = metrics.pop("sampler/weight") ** 2 / squared
        metrics.setdefault("objective/entropy", updates[0]["policy/entropy"])
        if self.method.needs_reference:
            # Before the first update of the batch, as where the KL is subtracted from the reward.
            metrics.setdefault("objective/kl", updates[0].get("policy/kl", math.nan))
            self.kl.update(metrics["objective/kl"], sum(len(g.episodes) for g in groups))
        if "audit/kl" in metrics:
            metrics.setdefault("objective/kl", metrics["audit/kl"])
        if self.kl.exhausted:
            raise DataError(
                f"step {index}: KL stayed above method.kl.high for {self.kl.above} steps; lower the "
                "learning rate or raise method.kl.beta (the last checkpoint is kept)"
            )
        return metrics

    def credit(self, groups: Sequence[Group], index: int) -> Metrics:
        """Put the advantage on every token of the scored completions of iteration ``index``; call once."""
        metrics = self._annotate(groups)
        if self.state_values is not None:
            metrics.update(self.state_values(groups, index))
        metrics.update(self.shaper(groups))
        if self.guard is not None:
            metrics.update(self.guard.observe(index, groups))
        beta = self.kl.beta if self.method.needs_reference else 0.0
        metrics.update(assign_advantages(groups, self.method, beta))
        return metrics

    def _update(self, groups: list[Group], index: int) -> list[Metrics]:
        """The optimiser steps on one batch; the metrics of each."""
        method = self.method.model_copy(
            update={"kl": self.method.kl.model_copy(update={"beta": self.kl.beta})}
        )
        singles = [Group(g.id, g.prompt, [x]) for g in groups for x in g.completions]
        # A group's completions stay together where minibatches allow it, to share the prompt.
        units = groups if method.updates.minibatches <= len(groups) else singles
        updates: list[Metrics] = []
        for epoch in range(method.updates.epochs):
            order = np.random.default_rng((self.config.loop.seed, index, epoch))
            for split in np.array_split(order.permutation(len(units)), method.updates.minibatches):
                minibatch = [units[i] for i in split]
                parts = [Part(minibatch, method, self.forward, self.share)]
                if self.critic is not None:
                    # A separate forward, so that only one model's activations are in memory.
                    parts.append(Part(minibatch, method, self._value_forward, self.share))
                update_index = index * method.updates.steps + len(updates)
                parts += self._ptx_parts(update_index)
                updates.append(self.trainer.update(parts))
                limit = method.updates.target_kl
                if limit is not None and updates[-1]["policy/approx_kl"] > 1.5 * limit:
                    return updates
        return updates

    def _ptx_parts(self, index: int) -> list[Part]:
        """The likelihood of the pretraining mix in update ``index``; empty without one."""
        ptx = self.config.ptx
        if ptx is None:
            return []
        picked = batch_indices(len(self.ptx), ptx.batch_size, index, self.config.loop.seed)
        batch = [self.ptx[i] for i in picked]
        return [Part(batch, SFT(), super().forward, self.lm.exact, ptx.coef, "ptx/")]

    def state(self) -> dict[str, Any]:
        """The running statistics of rewards, the KL controller, and the guard."""
        return {
            **super().state(),
            "kl": self.kl.state(),
            "guard": self.guard and self.guard.state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore ``state``."""
        self.kl.load(state["kl"])
        if self.guard is not None and state.get("guard"):
            self.guard.load(state["guard"])
        super().load(state)

    def export(self, folder: Path) -> None:
        """Write the policy in Hugging Face format: the audit's choice, or the last one."""
        if self.guard is not None:
            self.guard.restore_choice()
        super().export(folder)

    def progress(self, metrics: Metrics) -> str:
        """Reward and KL of the last iteration."""
        kl = f"  kl {metrics['objective/kl']:.2f}" if "objective/kl" in metrics else ""
        return f"reward {metrics['reward/mean']:+.3f}{kl}"

    def summary(self, metrics: Metrics) -> str:
        """Mean of each reward, and the KL, at the last iteration."""
        c = self.config
        dense = c.process or c.implicit
        names = [r.name for r in (*c.rewards, *([dense] if dense else []))]
        rewards = ", ".join(f"{n} {metrics.get(f'reward/{n}', math.nan):+.3f}" for n in names)
        kl = f", KL {metrics['objective/kl']:.2f} nats" if "objective/kl" in metrics else ""
        return f"{rewards}{kl}"


def main(config: RLConfig) -> Metrics:
    """Train a policy on rewards; it is exported to ``out``/model."""
    with open_run(config) as run:
        stage = RLStage(config)
        metrics = train(stage, run)
        if stage.guard is not None and stage.guard.why:
            run.summary({"audit.why": stage.guard.why})
        return metrics
