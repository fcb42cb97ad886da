"""Judges as a part of the reward: they compare the completions of one prompt in pairs."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import Protocol

from trimtab.rewards.functions import Columns, UserFunction
from trimtab.types import Group, Score

TIE = 0.5


def flipped(prompt: str, first: str, second: str) -> bool:
    """Whether the second completion is shown first: a fair coin toss computed from the texts, so that
    a resumed run makes the same comparisons."""
    text = "\0".join((prompt, first, second))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[0] % 2 == 1


class PairJudge(Protocol):
    """Compares pairs: a function, or a model behind an endpoint."""

    is_async: bool
    """Whether it waits for something else."""

    def ask(
        self, prompts: list[str], completions: Sequence[Sequence[str]], columns: Columns
    ) -> list[Score]:
        """P(second is better) for each pair, or a status."""
        ...


class JudgeFunction:
    """A function that compares pairs.

    Args:
        function: Gets ``prompts``, ``pairs`` and the rows' other columns.
    """

    def __init__(self, function: UserFunction) -> None:
        self.function = function
        self.is_async = function.signature.is_async

    def ask(
        self, prompts: list[str], completions: Sequence[Sequence[str]], columns: Columns
    ) -> list[Score]:
        """P(second is better) for each pair, or a status.

        Raises:
            RewardError: the function returned something other than one number per pair.
        """
        pairs = [list(pair) for pair in completions]
        columns = {**columns, "prompts": prompts, "pairs": pairs}
        returned = self.function(columns, len(pairs), "pairs")
        if isinstance(returned, Score):
            return [returned] * len(pairs)
        return self.function.scores(returned.values)


class JudgedPart:
    """A pairwise judge as a part of the reward.

    Every two completions of a prompt are compared once, in the order that ``flipped`` gives. Equal
    texts tie without a call of the judge. The score of a completion is the mean of its verdicts: 1
    for a win, 0 for a loss. Failed comparisons are not counted; a completion without any verdict has
    the status of its first failure. "NAME/first" records the share of a completion's comparisons
    that the one shown first won. The order is random, so it is 1/2 for a judge without position bias.
    """

    def __init__(self, name: str, judge: PairJudge) -> None:
        self.name, self.judge = name, judge
        self.is_async = judge.is_async

    def __call__(self, groups: Sequence[Group]) -> dict[str, list[Score]]:
        """A score for each completion, in order.

        Raises:
            RewardError: the function returned something other than one value per pair.
        """
        prompts: list[str] = []
        pairs: list[list[str]] = []
        columns: Columns = {k: [] for g in groups for k in g.extra}
        indices: list[tuple[int, int]] = []
        outcomes: list[list[Score]] = []
        first_outcomes: list[list[Score]] = []
        for g in groups:
            start = len(outcomes)
            outcomes += [[] for _ in g.completions]
            first_outcomes += [[] for _ in g.completions]
            for i, j in itertools.combinations(range(len(g.completions)), 2):
                a, b = g.completions[i].text, g.completions[j].text
                if a == b:
                    for one in (start + i, start + j):
                        outcomes[one].append(Score(TIE))
                    continue
                swap = flipped(g.text, a, b)
                prompts.append(g.text)
                pairs.append([b, a] if swap else [a, b])
                indices.append((start + j, start + i) if swap else (start + i, start + j))
                for key, column in columns.items():
                    column.append(g.extra.get(key))
        verdicts = self.judge.ask(prompts, pairs, columns) if pairs else []
        for (first, second), verdict in zip(indices, verdicts, strict=True):
            p = verdict.value
            if p is not None and not 0.0 <= p <= 1.0:
                verdict = Score(None, "invalid", f"a verdict must lie between 0 and 1, not {p!r}")
            if verdict.value is None:
                for one in (first, second):
                    outcomes[one].append(verdict)
                    first_outcomes[one].append(verdict)
            else:
                outcomes[first].append(Score(1.0 - verdict.value))
                outcomes[second].append(Score(verdict.value))
                for one in (first, second):
                    first_outcomes[one].append(Score(1.0 - verdict.value))
        return {
            self.name: [_share(verdicts_of) for verdicts_of in outcomes],
            f"{self.name}/first": [
                _share(verdicts_of, "no comparison: all completions of the prompt are equal")
                for verdicts_of in first_outcomes
            ],
        }


def _share(
    verdicts: Sequence[Score], none: str = "a judge needs two or more completions per prompt"
) -> Score:
    """The mean of the verdicts; without any, the first failure, or "invalid" with the reason ``none``."""
    won = [s.value for s in verdicts if s.value is not None]
    if won:
        return Score(sum(won) / len(won))
    if verdicts:
        return verdicts[0]
    return Score(None, "invalid", none)
