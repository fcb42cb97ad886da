"""An LLM judge as a part of the reward: it judges completions during training."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.feedback.judgement import Item, Judgement
from trimtab.judges.client import Failure
from trimtab.judges.judge_config import JudgeSpec
from trimtab.judges.pairwise import Judge, settled
from trimtab.rewards.functions import Columns
from trimtab.rewards.judge_function import JudgedPart
from trimtab.types import Group, Score

_STATUS = {"timeout": "timeout", "invalid": "invalid"}


class AIPart:
    """An LLM judge behind an endpoint as a part of the reward.

    In the modes "pairwise" and "rank", the score is the share of comparisons that a completion won
    against the other completions of its prompt. In the mode "score", it is the rubric's score of
    the completion alone, scaled to [0, 1]. A missing or failed verdict becomes a status.

    Raises:
        ConfigError: the rubric, the cache or the function that starts the server is not valid.
    """

    is_async = False

    def __init__(self, name: str, spec: JudgeSpec) -> None:
        self.name = name
        self.judge = Judge(spec)

    def __call__(self, groups: Sequence[Group]) -> dict[str, list[Score]]:
        """A score for each completion, in order.

        Raises:
            JudgeError: the endpoint does not work at all.
        """
        if self.judge.spec.mode == "pairwise":
            return JudgedPart(self.name, self)(groups)
        items = [
            Item.of(
                g.extra.get("messages") or [{"role": "user", "content": g.text}],
                [c.text for c in g.completions],
            )
            for g in groups
        ]
        if self.judge.spec.mode == "score":
            return {self.name: self._scores(items)}
        judgements = self.judge.client.map(items, self.judge)
        return {
            self.name: [s for j, i in zip(judgements, items, strict=True) for s in _places(j, i)]
        }

    def ask(
        self, prompts: list[str], completions: Sequence[Sequence[str]], columns: Columns
    ) -> list[Score]:
        """P(second is better) for each pair, or a status."""
        messages = columns.get("messages") or [None] * len(prompts)
        items = [
            Item.of(m or [{"role": "user", "content": text}], list(pair))
            for text, m, pair in zip(prompts, messages, completions, strict=True)
        ]

        async def work(item: Item) -> Score:
            verdicts = await self.judge.compare(item, 0, 1)
            if isinstance(verdicts, Failure):
                return Score(None, _STATUS.get(verdicts.status, "error"), verdicts.detail)
            probs = [v.prob for v in verdicts if v.prob is not None]
            if len(probs) == len(verdicts):
                return Score(1.0 - sum(probs) / len(probs))
            return Score(1.0 - settled([f.share for f in verdicts]))

        return self.judge.client.map(items, work)

    def _scores(self, items: Sequence[Item]) -> list[Score]:
        low, high = self.judge.rubric.scale
        # One call per completion, so that a failure affects only this completion.
        single = [Item.of(list(i.prompt), [a]) for i in items for a in i.completions]
        scores: list[Score] = []
        for j in self.judge.client.map(single, self.judge):
            if j.ranks is None:
                scores.append(_failed(j))
            else:
                scores.append(Score((j.scores["overall"][0] - low) / (high - low)))
        return scores


def _failed(j: Judgement) -> Score:
    status = str(j.detail["failure"])
    return Score(None, _STATUS.get(status, "error"), str(j.detail["why"]))


def _places(j: Judgement, item: Item) -> list[Score]:
    """The share of the other completions that each one is ranked above; a tie counts half."""
    if j.ranks is None:
        return [_failed(j) for _ in item.completions]
    others = max(1, len(j.ranks) - 1)
    return [
        Score(sum((r < s) + 0.5 * (r == s) for k, s in enumerate(j.ranks) if k != i) / others)
        for i, r in enumerate(j.ranks)
    ]
