"""One judge and one item: asked in every order that is wanted, verdicts put together."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.feedback.judgement import Item, Judgement
from trimtab.judges.chat_completion import Reply
from trimtab.judges.client import Client, Failure, ParsedReply
from trimtab.judges.judge_config import JudgeSpec
from trimtab.judges.question import LETTERS, ask
from trimtab.judges.reply import read, verdict_prob
from trimtab.judges.rubric import Rubric, load_rubric

TIE = 0.5
_SHARE = {"A": 1.0, "B": 0.0, "tie": TIE}


def dense(worths: Sequence[float]) -> tuple[int, ...]:
    """Ranks from 0 without gaps, highest worth first; equal worths tie.

    >>> dense([0.5, 1.0, 0.5])
    (1, 0, 1)
    """
    places = {w: i for i, w in enumerate(sorted(set(worths), reverse=True))}
    return tuple(places[w] for w in worths)


def turned(item: str, seed: int = 0) -> bool:
    """A fair coin that follows from the item: whether it is shown in reverse."""
    return hashlib.sha256(f"{seed}\0{item}".encode("utf-8", "surrogatepass")).digest()[0] % 2 == 1


class Judge:
    """A client with a rubric.

    Args:
        spec: All of it.

    Raises:
        ConfigError: the rubric, the cache or the server's function cannot be used.
    """

    def __init__(self, spec: JudgeSpec) -> None:
        self.spec = spec
        self.rubric = load_rubric(spec.rubric)
        self.client = Client(spec)
        self.critique = self.rubric.critique if spec.critique is None else spec.critique
        self.name = f"{spec.model}+{self.rubric.name}"
        if spec.mode != "pairwise":
            self.name += f"+{spec.mode}"

    def orders(self, item: str, k: int) -> list[tuple[int, ...]]:
        """In which orders the answers of an item are shown."""
        straight = tuple(range(k))
        if self.spec.order == "both" and k > 1:
            return [straight, straight[::-1]]
        turn = self.spec.order == "random" and turned(item, self.spec.seed or 0)
        return [straight[::-1] if turn else straight]

    async def __call__(self, item: Item) -> Judgement:
        """What the judge says of ``item``; status "error" where it said nothing."""
        if self.spec.mode == "score":
            return await self._score(item)
        if self.spec.mode == "rank":
            return await self._rank(item)
        return await self._pairs(item)

    async def _asked(
        self, item: Item, answers: Sequence[str]
    ) -> ParsedReply[dict[str, Any]] | Failure:
        rubric: Rubric = self.rubric
        if self.spec.principles == "one":
            rubric = rubric.principle(item.id)
        question = ask(
            self.spec.mode, rubric, item.prompt, answers,
            critique=self.critique, dimensions=self.spec.dimensions, ties=self.spec.ties,
        )  # fmt: skip
        return await self.client.ask(
            question.messages, question.answer, lambda reply: read(reply, question.answer)
        )

    async def compare(self, item: Item, i: int, j: int) -> list[dict[str, Any]] | Failure:
        """Answers ``i`` and ``j`` in each order.

        Returns:
            For each order ``shown`` (i, j or j, i), ``share`` (1 where i won, 0 where j did, 1/2
            for a tie), ``prob`` (P(i is better) or None), ``sides`` (share by dimension),
            ``reason``, and ``reply``.
        """
        found: list[dict[str, Any]] = []
        for order in self.orders(f"{item.id}/{i}/{j}", 2):
            shown = [(i, j)[k] for k in order]
            got = await self._asked(item, [item.completions[k] for k in shown])
            if isinstance(got, Failure):
                return got
            swap = order[0] == 1
            said = {k: v for k, v in got.value.items() if k != "critique"}
            shares = {k: 1 - _SHARE[v] if swap else _SHARE[v] for k, v in said.items()}
            prob = verdict_prob(got.reply) if self.spec.probabilities else None
            found.append(
                {
                    "shown": shown,
                    "share": shares.pop("verdict"),
                    "prob": None if prob is None else 1 - prob if swap else prob,
                    "sides": shares,
                    "reason": got.value.get("critique", ""),
                    "reply": got.reply,
                }
            )
        return found

    async def _pairs(self, item: Item) -> Judgement:
        k = len(item.completions)
        asked: list[dict[str, Any]] = []
        wins = [0.0] * k
        sides = {name: [0.0] * k for name in self._sides()}
        prob: float | None = None
        for i, j in itertools.combinations(range(k), 2):
            if item.completions[i] == item.completions[j]:
                # Two that say the same are a tie without a question.
                for mine in (wins, *sides.values()):
                    mine[i] += TIE
                    mine[j] += TIE
                prob = TIE
                continue
            found = await self.compare(item, i, j)
            if isinstance(found, Failure):
                return self._failed(item, found, asked)
            asked += found
            for mine, said in [
                (wins, [f["share"] for f in found]),
                *[(sides[s], [f["sides"][s] for f in found]) for s in sides],
            ]:
                share = settled(said)
                mine[i] += share
                mine[j] += 1 - share
            probs = [f["prob"] for f in found]
            prob = None if None in probs else sum(probs) / len(probs)
        return self._said(
            item, dense(wins), asked,
            dimensions={s: dense(mine) for s, mine in sides.items()},
            prob=prob if k == 2 else None,
        )  # fmt: skip

    async def _rank(self, item: Item) -> Judgement:
        k = len(item.completions)
        places = [0.0] * k
        asked: list[dict[str, Any]] = []
        for order in self.orders(item.id, k):
            got = await self._asked(item, [item.completions[a] for a in order])
            if isinstance(got, Failure):
                return self._failed(item, got, asked)
            ranks = [got.value["ranks"][LETTERS[place]] for place in range(k)]
            for a, rank in zip(order, ranks, strict=True):
                places[a] += rank
            asked.append(
                {
                    "shown": list(order),
                    "ranks": ranks,
                    "reason": got.value.get("critique", ""),
                    "reply": got.reply,
                }
            )
        return self._said(item, dense([-p for p in places]), asked)

    async def _score(self, item: Item) -> Judgement:
        asked: list[dict[str, Any]] = []
        scores: dict[str, list[float]] = {}
        for a, text in enumerate(item.completions):
            got = await self._asked(item, [text])
            if isinstance(got, Failure):
                return self._failed(item, got, asked)
            for name, value in got.value.items():
                if name != "critique":
                    scores.setdefault(name, []).append(float(value))
            asked.append(
                {"shown": [a], "reason": got.value.get("critique", ""), "reply": got.reply}
            )
        overall = scores["verdict"]
        return self._said(
            item, dense(overall), asked,
            scores={("overall" if n == "verdict" else n): tuple(v) for n, v in scores.items()},
        )  # fmt: skip

    def _sides(self) -> Mapping[str, str]:
        return self.rubric.dimensions if self.spec.dimensions else {}

    def _detail(self, asked: Sequence[dict[str, Any]]) -> dict[str, Any]:
        replies: list[Reply] = [a["reply"] for a in asked]
        return {
            "rubric": self.rubric.fingerprint,
            "orders": [{k: v for k, v in a.items() if k not in ("reply", "reason")} for a in asked],
            "dollars": sum(r.dollars for r in replies),
            "tokens_in": sum(r.tokens_in for r in replies),
            "tokens_out": sum(r.tokens_out for r in replies),
        }

    def _said(
        self, item: Item, ranks: tuple[int, ...], asked: Sequence[dict[str, Any]], **more: Any
    ) -> Judgement:
        replies: list[Reply] = [a["reply"] for a in asked]
        one = len(asked) == 1 and self.spec.mode != "score"
        return Judgement(
            item=item.id,
            annotator=self.name,
            who="ai",
            ranks=ranks,
            shown=tuple(asked[0]["shown"]) if one else None,
            reason="\n".join(a["reason"] for a in asked if a["reason"]),
            seconds=round(sum(r.seconds for r in replies), 4) if replies else None,
            at=max(r.at for r in replies) if replies else None,
            seed=self.spec.seed,
            detail=self._detail(asked),
            **more,
        )

    def _failed(self, item: Item, failure: Failure, asked: Sequence[dict[str, Any]]) -> Judgement:
        detail = self._detail(asked) | {"failure": failure.status, "why": failure.detail}
        return Judgement(
            item=item.id, annotator=self.name, who="ai", status="error",
            seed=self.spec.seed, detail=detail,
        )  # fmt: skip


def settled(shares: Sequence[float]) -> float:
    """One verdict of the verdicts in each order: the winner where all agree, else a tie.

    >>> settled([1.0, 1.0]), settled([1.0, 0.0]), settled([1.0, 0.5])
    (1.0, 0.5, 0.5)
    """
    return shares[0] if len(set(shares)) == 1 else TIE


def majority(judgements: Sequence[Judgement]) -> Judgement | None:
    """What most judges of one item say, pair by pair; None where none of them said anything.

    Each pair of answers goes to the side that more judges prefer; as many on both sides are a tie.
    Answers are ranked by the pairs they win.
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
        return dense(wins)

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
