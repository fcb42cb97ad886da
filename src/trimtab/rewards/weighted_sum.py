"""Rewards of completions: the weighted sum of models, functions, judges and verifiers, and dense rewards.

The raw score of every part is recorded under its name. A part that failed has a status instead, and
the completion has no reward: a failure is never turned into a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

from trimtab.data.render import Renderer
from trimtab.errors import ConfigError
from trimtab.rewards.ai_judge import AIPart
from trimtab.rewards.functions import FunctionPart
from trimtab.rewards.implicit import ImplicitReward, ImplicitSpec
from trimtab.rewards.judge_function import JudgedPart
from trimtab.rewards.learned import LearnedPart
from trimtab.rewards.part_config import RewardSpec
from trimtab.rewards.rules import VerifierPart
from trimtab.rewards.step_scores import ProcessReward, ProcessSpec
from trimtab.types import Group, Score


class RewardPart(Protocol):
    """One part of the reward."""

    def __call__(self, groups: Sequence[Group]) -> dict[str, list[Score]]:
        """Lists of scores by name, in the order of the completions: the part's own and its details."""
        ...


def make_part(spec: RewardSpec, tokenizer: Any, budget: int, device: str) -> RewardPart:
    """The part that ``spec`` describes."""
    if spec.function is not None:
        return FunctionPart(spec.name, spec.function, spec.options, spec.timeout)
    if spec.judge is not None:
        judge = FunctionPart(
            spec.name, spec.judge, spec.options, spec.timeout, kind="judge", what="pairs"
        )
        return JudgedPart(spec.name, judge)
    if spec.ai is not None:
        return AIPart(spec.name, spec.ai)
    if spec.verifier is not None:
        return VerifierPart(spec.name, spec.verifier, spec.options, spec.timeout)
    return LearnedPart(spec, tokenizer, budget, device)


class Rewards:
    """Scores groups in place with every part of a list of rewards.

    Args:
        specs: The parts.
        tokenizer: The policy's; see ``LearnedPart``.
        token_budget: Tokens per forward pass.
        device: The device of reward models.

    Raises:
        ConfigError: two parts have the same name, or a function cannot be imported.
        ModelError: a reward model cannot be loaded.
    """

    def __init__(
        self, specs: Sequence[RewardSpec], tokenizer: Any, token_budget: int, device: str = "auto"
    ) -> None:
        names = [s.name for s in specs]
        if len(set(names)) != len(names):
            raise ConfigError(
                f"rewards: two parts have the same name, in: {', '.join(names)}; rename one of them"
            )
        self.specs = list(specs)
        self.parts = {s.name: make_part(s, tokenizer, token_budget, device) for s in specs}

    def __call__(self, groups: Sequence[Group]) -> None:
        """Fill ``Completion.scores`` and ``Completion.reward`` (None if a part failed).

        Raises:
            RewardError: a function did not return one value for each completion.
            DataError: no row has the column that a verifier compares with.
        """
        completions = [c for g in groups for c in g.completions]
        for part in self.parts.values():
            for name, scores in part(groups).items():
                for c, score in zip(completions, scores, strict=True):
                    c.scores[name] = score
        for c in completions:
            parts = [(s.weight, c.scores[s.name]) for s in self.specs if s.weight != 0.0]
            if all(p.ok for _, p in parts):
                c.reward = sum((w * cast(float, p.value) for w, p in parts), 0.0)
            else:
                c.reward = None

    def state(self) -> dict[str, Any]:
        """The state that a resumed run needs: the fit on length of each reward model, by name."""
        return {k: p.state() for k, p in self.parts.items() if isinstance(p, LearnedPart)}

    def load(self, state: dict[str, Any]) -> None:
        """Restore ``state``."""
        for name, part_state in state.items():
            part = self.parts[name]
            assert isinstance(part, LearnedPart), name
            part.load(part_state)


class Scoring:
    """Fills scores and rewards of completions, and the column "dense" of dense rewards.

    Args:
        rewards: The parts of the sequence reward; may be empty if there is a dense reward.
        process: Scores of reasoning steps, or None.
        implicit: A preference-trained policy as token reward, or None.
        renderer: The policy's.
        token_budget: Tokens per forward pass.
        device: The device of reward models.

    Raises:
        ConfigError: two parts have the same name, or a function cannot be imported.
        ModelError: a model cannot be loaded, or has another vocabulary or no suitable head.
    """

    def __init__(
        self,
        rewards: Sequence[RewardSpec],
        process: ProcessSpec | None,
        implicit: ImplicitSpec | None,
        renderer: Renderer,
        token_budget: int,
        device: str = "auto",
    ) -> None:
        for key, spec in (("process", process), ("implicit", implicit)):
            if spec is not None and spec.name in {r.name for r in rewards}:
                raise ConfigError(
                    f"{key}.name: {spec.name!r} is the name of a reward too; choose another name"
                )
        self.rewards = Rewards(rewards, renderer.tokenizer, token_budget, device)
        self.dense: ProcessReward | ImplicitReward | None = None
        if process is not None:
            self.dense = ProcessReward(process, renderer, token_budget, device)
        elif implicit is not None:
            self.dense = ImplicitReward(implicit, renderer, token_budget, device)

    def outcome(self, groups: Sequence[Group]) -> None:
        """Compute the sequence reward only."""
        self.rewards(groups)

    def __call__(self, groups: Sequence[Group]) -> None:
        """Compute the sequence reward and the dense reward, whose weight is applied to "dense".

        A completion whose dense reward failed has no reward. With ``dense: none``, the weighted
        aggregate of a process reward is added to the sequence reward instead.
        """
        self.rewards(groups)
        if self.dense is None:
            return
        self.dense(groups)
        spec = self.dense.spec
        for c in (c for g in groups for c in g.completions):
            score = c.scores[spec.name]
            if spec.weight != 0.0 and not score.ok:
                c.reward = None
            c.tokens["dense"] = spec.weight * c.tokens["dense"]
            if isinstance(spec, ProcessSpec) and spec.dense == "none" and c.reward is not None:
                assert score.value is not None or spec.weight == 0.0
                c.reward += spec.weight * (score.value or 0.0)

    def state(self) -> dict[str, Any]:
        """The state that a resumed run needs."""
        return self.rewards.state()

    def load(self, state: dict[str, Any]) -> None:
        """Restore ``state``."""
        self.rewards.load(state)
