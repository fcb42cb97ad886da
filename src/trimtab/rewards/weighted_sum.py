"""Rewards of completions: the weighted sum of models, functions, judges and verifiers, and dense rewards.

The raw score of every part is recorded under its name. A part that failed has a status instead, and
the completion has no reward: a failure is never turned into a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, cast

from trimtab.data.render import Renderer
from trimtab.errors import ConfigError
from trimtab.rewards.ai_judge import AIPart
from trimtab.rewards.functions import FunctionPart, UserFunction
from trimtab.rewards.implicit import ImplicitReward, ImplicitSpec
from trimtab.rewards.judge_function import JudgedPart, JudgeFunction
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
    owner = f"reward {spec.name!r}"
    if spec.function is not None:
        key = f"rewards.{spec.name}.function"
        function = UserFunction(owner, spec.function, key, spec.options, spec.timeout)
        return FunctionPart(spec.name, function, spec.messages)
    if spec.judge is not None:
        key = f"rewards.{spec.name}.judge"
        function = UserFunction(owner, spec.judge, key, spec.options, spec.timeout)
        return JudgedPart(spec.name, JudgeFunction(function))
    if spec.ai is not None:
        return AIPart(spec.name, spec.ai)
    if spec.verifier is not None:
        return VerifierPart(spec.name, spec.verifier, spec.options, spec.timeout)
    return LearnedPart(spec, tokenizer, budget, device)


class Rewards:
    """Scores groups in place with every part of a list of rewards.

    Args:
        tokenizer: The policy's; see ``LearnedPart``.

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

    def prepare(self, columns: set[str], max_steps: int) -> None:
        """Tell the parts the columns of the whole dataset, and the run's number of optimiser steps."""
        for part in self.parts.values():
            judge = part.judge if isinstance(part, JudgedPart) else part
            if isinstance(judge, FunctionPart | JudgeFunction):
                judge.function.columns, judge.function.max_steps = columns, max_steps
            elif isinstance(judge, VerifierPart):
                judge.columns = columns

    def __call__(self, groups: Sequence[Group]) -> None:
        """Fill ``Completion.scores`` and ``Completion.reward``.

        The reward is the weighted sum of the parts that have a score. It is None if a part failed, or
        if every part is masked. Parts with an async function run at the same time.

        Raises:
            RewardError: a function did not return one number for each completion.
            DataError: no row has the column that a verifier compares with.
        """
        completions = [c for g in groups for c in g.completions]
        for part_scores in self._score(groups):
            for name, scores in part_scores.items():
                for c, score in zip(completions, scores, strict=True):
                    c.scores[name] = score
        trained = [(s.name, s.weight) for s in self.specs if s.weight != 0.0]
        for c in completions:
            parts = [(weight, c.scores[name]) for name, weight in trained]
            counted = [(w, s) for w, s in parts if s.status != "masked"]
            c.reward = None
            if all(s.ok for _, s in counted) and (counted or not parts):
                c.reward = sum((w * cast(float, s.value) for w, s in counted), 0.0)

    def _score(self, groups: Sequence[Group]) -> list[dict[str, list[Score]]]:
        """The scores of each part, in order."""
        parts = self.parts.values()
        waiting = [isinstance(p, FunctionPart | JudgedPart) and p.is_async for p in parts]
        if not any(waiting):
            return [part(groups) for part in parts]
        with ThreadPoolExecutor(sum(waiting)) as pool:
            futures = [
                pool.submit(part, groups) if waits else None
                for part, waits in zip(parts, waiting, strict=True)
            ]
            return [
                part(groups) if future is None else future.result()
                for part, future in zip(parts, futures, strict=True)
            ]

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
        implicit: A preference-trained policy as token reward, or None.

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

    def prepare(self, columns: set[str], max_steps: int) -> None:
        """Tell the parts the columns of the whole dataset, and the run's number of optimiser steps."""
        self.rewards.prepare(columns, max_steps)
        if isinstance(self.dense, ProcessReward) and self.dense.function is not None:
            self.dense.function.columns, self.dense.function.max_steps = columns, max_steps

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
