"""A judge with a rubric: the requests about one item, and the judgement from the verdicts."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trimtab.feedback.judgement import Item, Judgement
from trimtab.judges.cache import Cache
from trimtab.judges.chat_completion import Reply
from trimtab.judges.client import Client, Failure, ParsedReply
from trimtab.judges.judge_config import JudgeSpec
from trimtab.judges.question import LETTERS, ask
from trimtab.judges.reply import read, verdict_prob
from trimtab.judges.rubric import Rubric, load_rubric
from trimtab.judges.shared_cache import SharedCache
from trimtab.stats.ranking import dense_ranks, ranks_by_worth
from trimtab.types import Row

TIE = 0.5
_SHARE = {"A": 1.0, "B": 0.0, "tie": TIE}


def turned(item: str, seed: int = 0) -> bool:
    """Whether an item is shown in reverse order: a fair coin drawn from a hash of the item."""
    return hashlib.sha256(f"{seed}\0{item}".encode("utf-8", "surrogatepass")).digest()[0] % 2 == 1


@dataclass(slots=True)
class Verdict:
    """One reply of the judge about the completions of an item."""

    order: list[int]
    """Indices of the completions, in the order shown."""
    reply: Reply
    reason: str
    ranks: list[int] | None = None
    """Mode "rank": ranks in the order shown."""

    def to_row(self) -> Row:
        """The entry of ``detail.orders``."""
        return {"shown": self.order} | ({} if self.ranks is None else {"ranks": self.ranks})


@dataclass(slots=True)
class PairVerdict(Verdict):
    """A reply about two completions i < j."""

    share: float = TIE
    """1 if i won, 0 if j won, 1/2 for a tie."""
    prob: float | None = None
    """P(i is better), if log-probs were requested and returned."""
    dimensions: dict[str, float] = field(default_factory=dict[str, float])
    """``share`` per dimension of the rubric."""

    def to_row(self) -> Row:
        """The entry of ``detail.orders``."""
        row: Row = {"shown": self.order}
        return row | {"share": self.share, "prob": self.prob, "sides": self.dimensions}


class Judge:
    """A client with a rubric; call it with an item to get a judgement.

    Args:
        cache: As for ``Client``.

    Raises:
        ConfigError: the rubric, the cache or the function in ``endpoint`` cannot be used.
    """

    def __init__(self, spec: JudgeSpec, cache: Cache | SharedCache | None = None) -> None:
        self.spec = spec
        self.rubric = load_rubric(spec.rubric)
        self.client = Client(spec, cache)
        self.critique = self.rubric.critique if spec.critique is None else spec.critique
        self.name = f"{spec.model}+{self.rubric.name}"
        if spec.mode != "pairwise":
            self.name += f"+{spec.mode}"

    def orders(self, item: str, k: int) -> list[tuple[int, ...]]:
        """The orders in which the completions of an item are shown."""
        straight = tuple(range(k))
        if self.spec.order == "both" and k > 1:
            return [straight, straight[::-1]]
        turn = self.spec.order == "random" and turned(item, self.spec.seed or 0)
        return [straight[::-1] if turn else straight]

    async def __call__(self, item: Item) -> Judgement:
        """Judge ``item``; the status is "error" if a call failed."""
        if self.spec.mode == "score":
            return await self._score(item)
        if self.spec.mode == "rank":
            return await self._rank(item)
        return await self._pairs(item)

    async def _ask(self, item: Item, answers: Sequence[str]) -> ParsedReply[Row] | Failure:
        rubric: Rubric = self.rubric
        if self.spec.principles == "one":
            rubric = rubric.principle(item.id)
        question = ask(
            self.spec.mode,
            rubric,
            item.prompt,
            answers,
            critique=self.critique,
            dimensions=self.spec.dimensions,
            ties=self.spec.ties,
        )
        return await self.client.ask(
            question.messages, question.answer, lambda reply: read(reply, question.answer)
        )

    async def compare(self, item: Item, i: int, j: int) -> list[PairVerdict] | Failure:
        """Compare completions ``i`` and ``j``: one verdict per order."""
        verdicts: list[PairVerdict] = []
        for order in self.orders(f"{item.id}/{i}/{j}", 2):
            pair = [(i, j)[k] for k in order]
            result = await self._ask(item, [item.completions[k] for k in pair])
            if isinstance(result, Failure):
                return result
            swap = order[0] == 1
            values = {k: v for k, v in result.value.items() if k != "critique"}
            shares = {k: 1 - _SHARE[v] if swap else _SHARE[v] for k, v in values.items()}
            prob = verdict_prob(result.reply) if self.spec.probabilities else None
            verdicts.append(
                PairVerdict(
                    order=pair,
                    reply=result.reply,
                    reason=result.value.get("critique", ""),
                    share=shares.pop("verdict"),
                    prob=None if prob is None else 1 - prob if swap else prob,
                    dimensions=shares,
                )
            )
        return verdicts

    async def _pairs(self, item: Item) -> Judgement:
        k = len(item.completions)
        verdicts: list[Verdict] = []
        wins = [0.0] * k
        sides = {name: [0.0] * k for name in self._dimensions()}
        prob: float | None = None
        for i, j in itertools.combinations(range(k), 2):
            if item.completions[i] == item.completions[j]:
                # Equal completions are a tie and need no call.
                for scores in (wins, *sides.values()):
                    scores[i] += TIE
                    scores[j] += TIE
                prob = TIE
                continue
            pair_verdicts = await self.compare(item, i, j)
            if isinstance(pair_verdicts, Failure):
                return self._failed(item, pair_verdicts, verdicts)
            verdicts += pair_verdicts
            for scores, votes in [
                (wins, [f.share for f in pair_verdicts]),
                *[(sides[s], [f.dimensions[s] for f in pair_verdicts]) for s in sides],
            ]:
                share = settled(votes)
                scores[i] += share
                scores[j] += 1 - share
            probs = [v.prob for v in pair_verdicts if v.prob is not None]
            prob = sum(probs) / len(probs) if len(probs) == len(pair_verdicts) else None
        return self._judgement(
            item,
            ranks_by_worth(wins),
            verdicts,
            dimensions={s: ranks_by_worth(scores) for s, scores in sides.items()},
            prob=prob if k == 2 else None,
        )

    async def _rank(self, item: Item) -> Judgement:
        k = len(item.completions)
        places = [0.0] * k
        verdicts: list[Verdict] = []
        for order in self.orders(item.id, k):
            result = await self._ask(item, [item.completions[a] for a in order])
            if isinstance(result, Failure):
                return self._failed(item, result, verdicts)
            ranks = [result.value["ranks"][LETTERS[place]] for place in range(k)]
            for a, rank in zip(order, ranks, strict=True):
                places[a] += rank
            reason = result.value.get("critique", "")
            verdicts.append(Verdict(list(order), result.reply, reason, ranks))
        return self._judgement(item, dense_ranks(places), verdicts)

    async def _score(self, item: Item) -> Judgement:
        verdicts: list[Verdict] = []
        scores: dict[str, list[float]] = {}
        for a, text in enumerate(item.completions):
            result = await self._ask(item, [text])
            if isinstance(result, Failure):
                return self._failed(item, result, verdicts)
            for name, value in result.value.items():
                if name != "critique":
                    scores.setdefault(name, []).append(float(value))
            verdicts.append(Verdict([a], result.reply, result.value.get("critique", "")))
        overall = scores["verdict"]
        return self._judgement(
            item,
            ranks_by_worth(overall),
            verdicts,
            scores={("overall" if n == "verdict" else n): tuple(v) for n, v in scores.items()},
        )

    def _dimensions(self) -> Mapping[str, str]:
        return self.rubric.dimensions if self.spec.dimensions else {}

    def _detail(self, verdicts: Sequence[Verdict]) -> Row:
        replies = [v.reply for v in verdicts]
        return {
            "rubric": self.rubric.fingerprint,
            "orders": [v.to_row() for v in verdicts],
            "dollars": sum(r.dollars for r in replies),
            "tokens_in": sum(r.tokens_in for r in replies),
            "tokens_out": sum(r.tokens_out for r in replies),
        }

    def _judgement(
        self, item: Item, ranks: tuple[int, ...], verdicts: Sequence[Verdict], **more: Any
    ) -> Judgement:
        replies = [v.reply for v in verdicts]
        one = len(verdicts) == 1 and self.spec.mode != "score"
        return Judgement(
            item=item.id,
            annotator=self.name,
            who="ai",
            ranks=ranks,
            order=tuple(verdicts[0].order) if one else None,
            reason="\n".join(v.reason for v in verdicts if v.reason),
            seconds=round(sum(r.seconds for r in replies), 4) if replies else None,
            at=max(r.at for r in replies) if replies else None,
            seed=self.spec.seed,
            detail=self._detail(verdicts),
            **more,
        )

    def _failed(self, item: Item, failure: Failure, verdicts: Sequence[Verdict]) -> Judgement:
        detail = self._detail(verdicts) | {"failure": failure.status, "why": failure.detail}
        return Judgement(
            item=item.id,
            annotator=self.name,
            who="ai",
            status="error",
            seed=self.spec.seed,
            detail=detail,
        )


def settled(shares: Sequence[float]) -> float:
    """Combine the verdicts of all orders: the winner if all agree, else a tie.

    >>> settled([1.0, 1.0]), settled([1.0, 0.0]), settled([1.0, 0.5])
    (1.0, 0.5, 0.5)
    """
    return shares[0] if len(set(shares)) == 1 else TIE


def majority(judgements: Sequence[Judgement]) -> Judgement | None:
    """The majority of several judges on one item, pair by pair; None if all of them failed.

    Each pair goes to the completion that more judges prefer; equal numbers are a tie. Completions
    are ranked by the pairs that they win.
    """
    ok = [j for j in judgements if j.ranks is not None]
    if not ok:
        return None

    def ranks(listed: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        k = len(listed[0])
        wins = [0.0] * k
        for i, j in itertools.combinations(range(k), 2):
            votes = sum((r[i] < r[j]) - (r[i] > r[j]) for r in listed)
            share = TIE if votes == 0 else float(votes > 0)
            wins[i] += share
            wins[j] += 1 - share
        return ranks_by_worth(wins)

    probs = [j.prob for j in ok if j.prob is not None]
    names = set.intersection(*[set(j.dimensions) for j in ok])
    return Judgement(
        item=ok[0].item,
        annotator="majority",
        who="ai",
        ranks=ranks([j.ranks for j in ok if j.ranks is not None]),
        dimensions={n: ranks([j.dimensions[n] for j in ok]) for n in sorted(names)},
        prob=sum(probs) / len(probs) if probs else None,
        at=max((j.at for j in ok if j.at), default=None),
        detail={
            "judges": [j.annotator for j in ok],
            "agree": sum(j.ranks == ok[0].ranks for j in ok),
        },
    )
