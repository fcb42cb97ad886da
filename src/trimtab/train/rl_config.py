"""The configuration of online RL, with its cross-checks."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from trimtab.audit.gold_audit import AuditSpec
from trimtab.config import Config, FunctionPath
from trimtab.data.dataset import DataSpec
from trimtab.models.load import ModelSpec
from trimtab.models.routing import RoutingMode
from trimtab.objectives.methods import Method
from trimtab.objectives.methods.ppo import PPO
from trimtab.rewards.implicit import ImplicitSpec
from trimtab.rewards.part_config import RewardSpec
from trimtab.rewards.shape import Overlong, ShapeSpec, Truncated
from trimtab.rewards.step_scores import ProcessSpec
from trimtab.rollout.environment import EnvironmentSpec
from trimtab.train.guard import check_action
from trimtab.train.rollouts import RolloutConfig
from trimtab.train.state_values import MonteCarloSpec
from trimtab.train.trainer import OptimSpec


class CriticSpec(Config):
    """Where values come from."""

    renamed: ClassVar[dict[str, str]] = {"kind": "type"}
    type: Literal["separate", "shared"] = "separate"
    """A separate model, or a linear head on the policy's trunk."""
    model: ModelSpec | None = None
    """What a separate critic starts from; the policy's own start when not given."""
    optim: OptimSpec = OptimSpec()


class PtxSpec(Config):
    """PPO-ptx: the likelihood of pretraining text is added to every update (2203.02155)."""

    renamed: ClassVar[dict[str, str]] = {"batch": "batch_size"}
    data: DataSpec
    coef: float = Field(default=0.1, gt=0.0)
    """Weight of the token-mean negative log-likelihood."""
    batch_size: int = Field(default=16, gt=0)


class RLConfig(RolloutConfig):
    """Configuration of ``trimtab rl``."""

    renamed: ClassVar[dict[str, str]] = {"prompts": "batch_size", "group": "method.group_size"}

    extent_keys: ClassVar[frozenset[str]] = frozenset({"steps"})

    stage: Literal["rl"] = "rl"
    out: str = "runs/rl"
    method: Method = PPO()
    """``type: NAME`` is the published method; every other key of it overrides a part."""
    rewards: tuple[RewardSpec, ...] = ()
    """Parts of the sequence reward, which comes at the last token."""
    process: ProcessSpec | None = None
    """Scores of reasoning steps, as rewards at the last token of each step."""
    implicit: ImplicitSpec | None = None
    """A preference-trained policy as a reward on every token."""
    monte_carlo: MonteCarloSpec = MonteCarloSpec()
    """How ``method.advantage.values: monte-carlo`` samples continuations."""
    critic: CriticSpec = CriticSpec()
    ptx: PtxSpec | None = None
    routing: RoutingMode = "own"
    """Which experts the tokens of an update take, where the policy is a mixture. "own": those that its router
    chooses now. "watch": the same, and ``routing/flips`` says how many have changed since the batch was
    scored. "replay": those of the scoring forward, before the first update."""
    environment: EnvironmentSpec | None = None
    """Episodes of several turns in an environment with tools, in place of completions."""
    tools: tuple[FunctionPath, ...] = ()
    """Functions that the policy may call in every episode, with type hints and docstrings."""
    audit: AuditSpec | None = None
    """A gold audit of a share of the rollouts, and what is done when gold falls: ``act: stop`` exports
    the best audited policy instead of a worse last one."""
    steps: int = Field(default=100, gt=0)
    """Iterations: each samples a batch of rollouts and trains on it."""
    batch_size: int = Field(default=64, gt=0)
    """Prompts per iteration, each with ``method.group_size`` completions."""

    @property
    def episodes(self) -> EnvironmentSpec | None:
        """The environment, or its limits for ``tools`` alone; None where completions have one turn."""
        return self.environment or (EnvironmentSpec() if self.tools else None)

    @property
    def max_tokens(self) -> int:
        """Most tokens of a completion or an episode."""
        return self.episodes.max_tokens if self.episodes else self.sampling.max_new_tokens

    @property
    def shaping(self) -> ShapeSpec:
        """The run's shaping, with the method's penalties where the run sets none."""
        length, limit = self.method.length, self.max_tokens
        penalties: dict[str, Truncated | Overlong] = {}
        if length.missing_eos_penalty and self.shape.truncated is None:
            penalties["truncated"] = Truncated(weight=length.missing_eos_penalty)
        if length.overlong and self.shape.overlong is None:
            cache = max(1, round(length.overlong * limit))
            penalties["overlong"] = Overlong(max_length=limit, cache=cache)
        return self.shape.model_copy(update=penalties)

    @model_validator(mode="after")
    def _sane(self) -> RLConfig:
        if self.sampling.temperature <= 0:
            raise ValueError(
                "sampling.temperature must be above 0 for RL: a greedy policy has no log-probs to train on"
            )
        if self.sampling.filtered:
            raise ValueError(
                "top_p, top_k and min_p cut the distribution that importance ratios are taken over; "
                "for RL leave them at 1.0, 0 and 0"
            )
        method = self.method
        if method.group_size * self.batch_size < method.updates.minibatches:
            raise ValueError(
                f"method.updates.minibatches: {method.updates.minibatches} is more than the "
                f"{method.group_size * self.batch_size} completions of an iteration"
            )
        if method.group_size < 2 and any(r.compares for r in self.rewards):
            raise ValueError(
                "a judge compares completions of one prompt: set method.group_size to 2 or more"
            )
        if self.critic != CriticSpec() and not method.needs_critic:
            raise ValueError(f"{method.name} has no critic; remove the key critic")
        if self.process is not None and self.implicit is not None:
            raise ValueError("process and implicit both write dense rewards; set one of them")
        dense = self.process or self.implicit
        in_episodes = self.environment is not None or bool(self.tools)
        environment = self.environment
        own_reward = environment is not None and bool(environment.factory or environment.agent)
        if self.tools and environment is not None and environment.agent is not None:
            raise ValueError("an agent has its own tools: remove tools or environment.agent")
        if in_episodes and (dense is not None or method.advantage.values == "monte-carlo"):
            raise ValueError(
                "episodes with tools have a reward at their end only: remove process and implicit, and "
                "leave method.advantage.values at critic"
            )
        if dense is None and not self.rewards and not own_reward:
            raise ValueError(
                "there is no reward: set rewards, process, implicit, or environment.factory"
            )
        parts = (*self.rewards, *([dense] if dense else []))
        if all(r.weight == 0 for r in parts) and not own_reward:
            raise ValueError("every reward has weight 0: there is nothing to train on")
        if method.advantage.estimator == "process" and self.process is None:
            raise ValueError(
                "method.advantage.estimator: process needs scores of reasoning steps; set process"
            )
        monte_carlo = method.advantage.values == "monte-carlo"
        if monte_carlo and (dense is not None or all(r.weight == 0 for r in self.rewards)):
            raise ValueError(
                "method.advantage.values: monte-carlo estimates the sequence reward from each reasoning "
                "step; set rewards, and neither process nor implicit"
            )
        if self.monte_carlo != MonteCarloSpec() and not monte_carlo:
            raise ValueError(
                "monte_carlo belongs to method.advantage.values: monte-carlo; remove the key"
            )
        if self.rollout.max_staleness and self.rollout.engine != "native" and self.episodes:
            raise ValueError(
                "rollout.max_staleness: episodes with tools are not collected ahead from servers yet; set "
                "it to 0"
            )
        if self.audit is not None:
            check_action(self.audit, self.rewards)
        return self
