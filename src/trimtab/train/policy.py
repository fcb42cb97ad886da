"""Online methods: sample, score, advantage, update. PPO with a critic is the first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from trimtab.config import Config
from trimtab.data import formats
from trimtab.data.pack import Output, Pack, packs
from trimtab.errors import DataError
from trimtab.models.forward import token_logps
from trimtab.models.heads import Scorer
from trimtab.models.load import LM, ModelSpec, logit_head, save_model
from trimtab.objectives.advantage import gae, last_token, token_rewards
from trimtab.objectives.kl import KLController, log_ratio
from trimtab.objectives.methods.ppo import PPO
from trimtab.objectives.sft import SFT
from trimtab.objectives.value import explained_variance
from trimtab.rewards.score import Rewards, RewardSpec
from trimtab.rollout.collect import collect
from trimtab.runs import Run
from trimtab.runs.console import console
from trimtab.sample.native import Sampler, SamplingConfig
from trimtab.tensors import masked_mean, pad_rows, unpad_rows, whiten
from trimtab.train.sft import DataSpec, load_groups, renderer_for
from trimtab.train.step import LoopSpec, OptimSpec, Part, Trainer, batch_indices, fit
from trimtab.types import Completion, Floats, Group


class CriticSpec(Config):
    """Where values come from."""

    kind: Literal["separate", "shared"] = "separate"
    """A model of its own, or a linear head on the policy's trunk."""
    model: ModelSpec | None = None
    """What a separate critic starts from; the policy's own start when not given."""
    optim: OptimSpec = OptimSpec(lr=1e-5)


class PtxSpec(Config):
    """PPO-ptx: a share of likelihood on given text in every update (2203.02155)."""

    data: DataSpec
    coef: float = Field(default=0.1, gt=0.0)
    """Weight of the token-mean negative log-likelihood."""
    batch: int = Field(default=16, gt=0)


class RLConfig(Config):
    """Configuration of ``trimtab rl``."""

    out: str = "runs/rl"
    model: ModelSpec
    reference: ModelSpec | None = None
    """The frozen reference; the policy's own start when not given."""
    data: DataSpec
    method: PPO = PPO()
    rewards: tuple[RewardSpec, ...] = Field(min_length=1)
    reward_clip: float | None = Field(default=None, gt=0.0)
    """Bounds the weighted sum before penalties."""
    sampling: SamplingConfig = SamplingConfig()
    critic: CriticSpec = CriticSpec()
    ptx: PtxSpec | None = None
    steps: int = Field(default=100, gt=0)
    """Batches of rollouts."""
    prompts: int = Field(default=64, gt=0)
    """Prompts a batch."""
    group: int = Field(default=1, gt=0)
    """Completions a prompt."""
    optim: OptimSpec = OptimSpec(lr=1e-6)
    loop: LoopSpec = LoopSpec()

    @model_validator(mode="after")
    def _sane(self) -> RLConfig:
        if self.sampling.temperature <= 0:
            raise ValueError(
                "sampling.temperature must be above 0 for RL: a greedy policy has no log-probs to train on"
            )
        if self.sampling.top_p < 1.0 or self.sampling.top_k > 0 or self.sampling.min_p > 0:
            raise ValueError(
                "top_p, top_k and min_p cut the distribution that importance ratios are taken over; "
                "for RL leave them at 1.0, 0 and 0"
            )
        if self.group * self.prompts < self.method.minibatches:
            raise ValueError("method.minibatches is more than the completions of a batch")
        if all(r.weight == 0 for r in self.rewards):
            raise ValueError("every reward has weight 0: there is nothing to train on")
        return self


class RLStage:
    """Online RL as a stage of the loop."""

    name = "rl"

    def __init__(self, config: RLConfig) -> None:
        self.config = config
        self.renderer = renderer_for(config.model, config.data)
        self.prompts = load_groups(config.data, formats.prompts, self.renderer.prompt)
        self.lm = LM.load(config.model)
        # Dropout off: old and new log-probs must come from the same function.
        for module in self.lm.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if config.reference is not None:
            self.reference: LM | None = LM.load(config.reference, train=False)
        elif config.model.lora is not None:
            self.reference = None
        else:
            self.reference = self.lm.frozen_copy()
        self.rewards = Rewards(
            config.rewards, self.renderer.tokenizer, config.loop.token_budget, config.model.device
        )
        self.kl = KLController(config.method.kl)
        self.sampler = Sampler(
            self.lm.plain_attention(), self.renderer.tokenizer, stop_ids=self.renderer.stop_ids
        )
        modules: dict[str, nn.Module] = {"policy": self.lm.model}
        self.critic: Scorer | None = None
        self.value_head: nn.Linear | None = None
        if config.critic.kind == "separate":
            start = config.critic.model or config.model.model_copy(update={"lora": None})
            self.critic = Scorer.load(
                start, pad_id=int(self.renderer.tokenizer.pad_token_id), zero=True
            )
            modules["critic"] = self.critic.model
        else:
            width = int(self.lm.logit_width)
            self.value_head = nn.Linear(width, 1, device=self.lm.device)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
            modules["critic"] = self.value_head
        self.ptx: list[Group] = []
        if config.ptx is not None:
            given = config.ptx.data
            self.ptx = load_groups(given, formats.demonstrations, self.renderer.demonstration)
        self.steps = config.steps
        updates = config.steps * config.method.epochs * config.method.minibatches
        self.trainer = Trainer(
            modules, {"policy": config.optim, "critic": config.critic.optim}, updates, config.loop
        )
        self.last: list[Group] = []

    @property
    def share(self) -> bool:
        """Packs serve policy and critic together, so both must allow sharing."""
        return self.lm.exact and (self.critic is None or self.critic.exact)

    def forward(self, pack: Pack) -> Output:
        """Log-probs at the sampling temperature, entropies, values."""
        states = self.lm.states(pack)
        logp, entropy = self.lm.logps(states, pack, self.config.sampling.temperature)
        if self.critic is not None:
            value = self.critic.values(pack)
        else:
            assert self.value_head is not None
            value = self.value_head(states[pack.source_C])[:, 0].float()
        return Output(logp_C=logp, entropy_C=entropy, value_C=value)

    def _ptx_forward(self, pack: Pack) -> Output:
        logp, _ = self.lm.logps(self.lm.states(pack), pack)
        return Output(logp_C=logp)

    def _reference(self, pack: Pack) -> Tensor:
        tau = self.config.sampling.temperature
        if self.reference is None:
            with self.lm.adapters_off():
                return self.lm.logps(self.lm.states(pack), pack, tau)[0]
        states = self.reference.states(pack)
        head = logit_head(self.reference.model)
        return token_logps(states[pack.source_C], pack.target_C, head, temperature=tau)[0]

    @torch.no_grad()
    def _annotate(self, groups: Sequence[Group]) -> float:
        """Put old and reference log-probs and values on every token; mean entropy, nats."""
        entropy = count = 0.0
        for pack in packs(groups, self.config.loop.token_budget, share=self.share):
            on = pack.to(self.lm.device)
            out = self.forward(on)
            assert out.logp_C is not None and out.value_C is not None and out.entropy_C is not None
            columns = {
                "old_logp": out.logp_C,
                "value": out.value_C,
                "ref_logp": self._reference(on),
            }
            entropy += float(out.entropy_C.sum())
            count += len(out.entropy_C)
            put(pack, {k: v.cpu().numpy() for k, v in columns.items()})
        return entropy / max(1.0, count)

    def _credit(self, done: list[Completion]) -> dict[str, float]:
        """KL-penalised token rewards, advantages and returns; metrics."""
        method = self.config.method
        mask = pad_rows([c.mask for c in done])
        value = pad_rows([c.tokens["value"] for c in done])
        old = pad_rows([c.tokens["old_logp"] for c in done])
        kl = log_ratio(old, pad_rows([c.tokens["ref_logp"] for c in done]))
        final = torch.tensor([self._final(c) for c in done])
        if method.whiten_rewards:
            final = whiten(final, torch.ones_like(final, dtype=torch.bool), keep_mean=True)
        rewards = token_rewards(final, kl, mask, self.kl.beta)
        advantages, returns = gae(rewards, value, mask, method.gamma, method.lam)
        fit = explained_variance(value[mask], returns[mask])
        if method.whiten_advantages:
            advantages = whiten(advantages, mask)
        lengths = [len(c) for c in done]
        for name, rows in (("advantage", advantages), ("return", returns)):
            for c, row in zip(done, unpad_rows(rows, lengths), strict=True):
                c.tokens[name] = row
        if method.mask_truncated:
            for c in done:
                if c.finish == "length":
                    c.mask = np.zeros_like(c.mask)
        summed = torch.where(mask, kl, torch.zeros_like(kl)).sum(1)
        drift = log_ratio(old, pad_rows([c.tokens["sampler_logp"] for c in done]))
        rows = torch.arange(len(done))
        return {
            "objective/kl": float(summed.mean()),
            "objective/kl_reward": -self.kl.beta * float(summed.mean()),
            "reward/final": float(final.mean()),
            "value/mean": float(masked_mean(value, mask)),
            "value/last": float(masked_mean(value[rows, last_token(mask)], mask.any(1))),
            "value/explained_variance": fit,
            "sampler/drift_max": float(
                torch.where(mask, drift, torch.zeros_like(drift)).abs().max()
            ),
        }

    def _final(self, c: Completion) -> float:
        assert c.reward is not None
        reward, bound = c.reward, self.config.reward_clip
        if bound is not None:
            reward = min(max(reward, -bound), bound)
        return reward - (self.config.method.missing_eos_penalty if c.finish == "length" else 0.0)

    def rollout(self, index: int) -> tuple[list[Group], dict[str, float]]:
        """Sample and score batch ``index``.

        Raises:
            DataError: no completion could be scored.
        """
        c = self.config
        picked = [
            self.prompts[i] for i in batch_indices(len(self.prompts), c.prompts, index, c.loop.seed)
        ]
        groups = collect(
            self.sampler, self.renderer, picked, c.sampling,
            n=c.group, key=(c.loop.seed, index), version=self.trainer.updates,
        )  # fmt: skip
        self.rewards(groups)
        everything = [x for g in groups for x in g.completions]
        metrics = describe(everything)
        for g in groups:
            g.completions = [x for x in g.completions if x.reward is not None]
        groups = [g for g in groups if g.completions]
        if not groups:
            failed = next(s for x in everything for s in x.scores.values() if not s.ok)
            raise DataError(
                f"step {index}: no completion could be scored; the first failure was "
                f"{failed.status}: {failed.detail}"
            )
        return groups, metrics

    def step(self, index: int) -> dict[str, float]:
        """One batch of rollouts and its updates."""
        c, method = self.config, self.config.method
        groups, metrics = self.rollout(index)
        self.last = groups
        metrics["objective/entropy"] = self._annotate(groups)
        done = [x for g in groups for x in g.completions]
        metrics.update(self._credit(done))
        singles = [Group(g.id, g.prompt, [x]) for g in groups for x in g.completions]
        # A group's completions stay together where minibatches allow it, to share the prompt.
        units = groups if method.minibatches <= len(groups) else singles
        taken: list[dict[str, float]] = []
        stopped = False
        for epoch in range(method.epochs):
            order = np.random.default_rng((c.loop.seed, index, epoch)).permutation(len(units))
            for number, part in enumerate(np.array_split(order, method.minibatches)):
                parts = [Part([units[i] for i in part], method, self.forward, self.share)]
                if c.ptx is not None:
                    at = (index * method.epochs + epoch) * method.minibatches + number
                    given = batch_indices(len(self.ptx), c.ptx.batch, at, c.loop.seed)
                    parts.append(
                        Part(
                            [self.ptx[i] for i in given], SFT(), self._ptx_forward,
                            self.lm.exact, c.ptx.coef, "ptx/",
                        )
                    )  # fmt: skip
                taken.append(self.trainer.update(parts))
                limit = method.target_kl
                if limit is not None and taken[-1]["policy/approx_kl"] > 1.5 * limit:
                    stopped = True
                    break
            if stopped:
                break
        for name in taken[0]:
            metrics[name] = float(np.mean([t[name] for t in taken]))
        metrics["policy/updates"] = float(len(taken))
        metrics["kl/beta"] = self.kl.beta
        self.kl.update(metrics["objective/kl"], len(done))
        if self.kl.exhausted:
            raise DataError(
                f"step {index}: KL stayed above method.kl.high for {self.kl.above} steps; lower the "
                "learning rate or raise method.kl.beta (the last checkpoint is kept)"
            )
        return metrics

    def evaluate(self, index: int) -> dict[str, float]:
        """See ``Stage``; comparing policies is a stage of its own."""
        return {}

    def samples(self) -> list[dict[str, Any]]:
        """The last batch's prompts, completions, scores."""
        return [
            {
                "prompt": g.text,
                "completion": x.text,
                "reward": x.reward,
                "scores": {k: s.value if s.ok else s.status for k, s in x.scores.items()},
                "finish": x.finish,
                "tokens": len(x),
                "version": x.version,
            }
            for g in self.last
            for x in g.completions
        ]

    def state(self) -> dict[str, Any]:
        """The KL controller; all else follows from the step."""
        return {"kl": self.kl.state()}

    def load(self, state: dict[str, Any]) -> None:
        """See ``Stage``."""
        self.kl.load(state["kl"])

    def export(self, folder: Path) -> None:
        """See ``Stage``."""
        save_model(self.lm.model, folder, self.renderer.tokenizer, self.lm.plain)

    def line(self, metrics: dict[str, float]) -> str:
        """See ``Stage``."""
        return f"reward {metrics['reward/mean']:+.3f}  kl {metrics['objective/kl']:.2f}"


def put(pack: Pack, columns: dict[str, Floats]) -> None:
    """Write per-token data [C] back onto the completions of ``pack`` (0 where not trained)."""
    counts = [int(n) for n in pack.trained_B.tolist()]
    starts = np.concatenate([[0], np.cumsum(counts)])
    done = [x for g in pack.groups for x in g.completions]
    for name, data in columns.items():
        for i, x in enumerate(done):
            row = np.zeros(len(x), dtype=np.float32)
            row[x.mask] = data[starts[i] : starts[i + 1]]
            x.tokens[name] = row


def describe(done: Sequence[Completion]) -> dict[str, float]:
    """Rewards by part, lengths, finish reasons, failures."""
    scored = [c.reward for c in done if c.reward is not None]
    metrics = {
        "reward/mean": float(np.mean(scored)) if scored else math.nan,
        "reward/std": float(np.std(scored)) if scored else math.nan,
        "reward/unscored": 1.0 - len(scored) / max(1, len(done)),
        "completion/length": float(np.mean([len(c) for c in done])),
        "completion/truncated": float(np.mean([c.finish == "length" for c in done])),
    }
    for name in done[0].scores:
        values = [c.scores[name].value for c in done if c.scores[name].ok]
        metrics[f"reward/{name}"] = (
            float(np.mean([v for v in values if v is not None])) if values else math.nan
        )
    return metrics


def main(config: RLConfig) -> dict[str, float]:
    """Run the stage; the policy is in ``out``/model."""
    run = Run(config.out, config.model_dump(mode="json"), config.loop.tracker)
    figures = fit(RLStage(config), run, config.loop)
    parts = ", ".join(
        f"{r.name} {figures.get(f'reward/{r.name}', math.nan):+.3f}" for r in config.rewards
    )
    console.print(
        f"[bold]rl[/bold]: {parts}, KL {figures.get('objective/kl', math.nan):.2f} nats -> {config.out}/model"
    )
    return figures
