"""All scores of a rollout: the list of rewards, and rewards for steps or tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trimtab.data.render import Renderer
from trimtab.errors import ConfigError
from trimtab.rewards.implicit import ImplicitReward, ImplicitSpec
from trimtab.rewards.score import Rewards, RewardSpec
from trimtab.rewards.step_scores import ProcessReward, ProcessSpec
from trimtab.types import Group


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
