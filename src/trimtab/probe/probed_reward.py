"""The reward under probe: scores completions of prompts that are given as text."""

from collections.abc import Mapping, Sequence
from typing import Literal

from trimtab.data.conversation import Text
from trimtab.data.formats import Example
from trimtab.data.load_tokenizer import load_tokenizer
from trimtab.data.render import Renderer
from trimtab.probe.perturb import ENGLISH, SANDBOX, Phrases
from trimtab.rewards.part_config import RewardSpec
from trimtab.rewards.weighted_sum import Rewards
from trimtab.sandbox import BASE
from trimtab.types import Group

Scores = list[list[float | None]]
"""By group and completion; None where scoring failed."""


class ProbedReward:
    """One reward, with the tokenizer and renderer that its texts need.

    Args:
        spec: The reward; its name must be "reward".
        tokenizer: Folder or hub id; the reward model's own when not given.
    """

    def __init__(
        self,
        spec: RewardSpec,
        tokenizer: str | None,
        chat_template: str | None,
        token_budget: int,
        device: str,
    ) -> None:
        self.spec = spec
        own = spec.model or (spec.models[0] if spec.models else None)
        self.tokenizer = load_tokenizer(tokenizer or own or str(BASE), chat_template)
        self.renderer = Renderer(self.tokenizer)
        self.rewards = Rewards([spec], self.tokenizer, token_budget, device)

    def phrases(self, language: Literal["auto", "english", "sandbox"]) -> Phrases:
        """Phrases that its tokenizer knows."""
        if language == "auto":
            unknown = self.tokenizer.unk_token_id
            ids = list(self.tokenizer(ENGLISH.pads[0], add_special_tokens=False)["input_ids"])
            blind = unknown is not None and ids.count(unknown) > len(ids) / 4
            reads_tokens = self.spec.function is None and self.spec.judge is None
            language = "sandbox" if blind and reads_tokens else "english"
        return SANDBOX if language == "sandbox" else ENGLISH

    def groups(
        self, prompts: Sequence[tuple[Text, Sequence[str], Mapping[str, object]]]
    ) -> list[Group]:
        """Scored groups of prompts with their completions and other columns."""
        groups: list[Group] = []
        for i, (prompt, texts, extra) in enumerate(prompts):
            completions: list[Text] = [
                t if isinstance(prompt, str) else [{"role": "assistant", "content": t}]
                for t in texts
            ]
            group = self.renderer.scoring(Example(str(i), prompt, completions, extra=dict(extra)))
            assert group is not None
            groups.append(group)
        self.rewards(groups)
        return groups

    def scores(self, groups: Sequence[Group]) -> Scores:
        """Scores of groups that were scored."""
        return [[c.scores["reward"].value for c in g.completions] for g in groups]


def disagreements(groups: Sequence[Group]) -> list[float]:
    """Disagreement of an ensemble's members on each scored completion; empty for other rewards."""
    scores = [c.scores.get("reward/disagreement") for g in groups for c in g.completions]
    return [s.value for s in scores if s is not None and s.value is not None]
