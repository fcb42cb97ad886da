"""Rewards of completions: a weighted list of models, ensembles, functions, judges and verifiers.

The raw score of every part is recorded under its name. A part that failed has a status instead, and
the completion has no reward: a failure is never turned into a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

from trimtab.errors import ConfigError
from trimtab.rewards.ai_judge import AIPart
from trimtab.rewards.functions import FunctionPart
from trimtab.rewards.judge_function import JudgedPart
from trimtab.rewards.learned import LearnedPart
from trimtab.rewards.reward_config import RewardSpec
from trimtab.rewards.rules import VerifierPart
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
