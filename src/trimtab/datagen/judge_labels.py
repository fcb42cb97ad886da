"""``trimtab judge``: label comparisons by an LLM, as judgements and as rows to train on."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pydantic import Field, model_validator

from trimtab.config import build
from trimtab.datagen.output import write_summary
from trimtab.errors import DataError, JudgeError
from trimtab.feedback import records
from trimtab.feedback.comparisons import comparison_rows
from trimtab.feedback.items import read_items
from trimtab.feedback.judgement import Item, Judgement
from trimtab.judges.cache import Account
from trimtab.judges.judge_config import JudgeSpec
from trimtab.judges.pairwise import Judge, majority
from trimtab.judges.question import LETTERS
from trimtab.judges.shared_cache import SharedCache
from trimtab.runs import Run
from trimtab.runs.console import bar
from trimtab.runs.job_launch import PartLaunchSpec
from trimtab.runs.ray_jobs import Job, Resources, ray_session, run_jobs
from trimtab.stats.uncertainty import bootstrap_mean, wilson

log = logging.getLogger(__name__)


class JudgeConfig(JudgeSpec):
    """Configuration of ``trimtab judge``."""

    out: str = "runs/judge"
    """Gets items.jsonl, judgements.jsonl, rows.jsonl, summary.json and, if ``cache`` is not given, cache.sqlite."""
    data: str
    """Items, or rows with ``prompt`` and ``completions`` or ``chosen`` and ``rejected``."""
    limit: int | None = Field(default=None, gt=0)
    launch: PartLaunchSpec = PartLaunchSpec()
    """Whether parts of the items are judged on a Ray cluster; caps on calls and dollars hold for all
    workers together."""
    panel: tuple[dict[str, Any], ...] = ()
    """More judges of the same items: the keys that differ from those above, such as
    ``{model: NAME}`` or ``{rubric: honest}``. Rows are then labelled by the majority."""

    @model_validator(mode="after")
    def _panel(self) -> JudgeConfig:
        for i, over in enumerate(self.panel):
            wrong = set(over) - set(JudgeSpec.model_fields)
            if wrong:
                raise ValueError(f"panel[{i}]: {', '.join(sorted(wrong))} is no key of a judge")
        self.judges()
        return self

    def judges(self) -> list[JudgeSpec]:
        """The specs of all judges, this one first."""
        shared = {k: getattr(self, k) for k in JudgeSpec.model_fields}
        shared["cache"] = self.cache or str(Path(self.out) / "cache.sqlite")
        return [build(JudgeSpec, {**shared, **over}, "panel") for over in ({}, *self.panel)]


@dataclass(slots=True, frozen=True)
class Rate:
    """A share with its 95 % interval."""

    rate: float
    low: float
    high: float


@dataclass(slots=True, frozen=True)
class JudgeStats:
    """Consistency and position bias of a judge, from its judgements of pairs."""

    judged: int
    ties: float | None
    """Share of items."""
    consistency: float | None
    """Share of pairs asked in both orders that have the same winner."""
    first: Rate | None
    """Wins of the completion shown first, over verdicts that are not ties."""


@dataclass(slots=True, frozen=True)
class Agreement:
    """Agreement with the ranks that the rows already had, ties half; the interval is over items."""

    mean: float
    low: float
    high: float
    pairs: int


@dataclass(slots=True)
class JudgeSummary:
    """summary.json of ``trimtab judge``."""

    items: int
    judges: dict[str, JudgeStats] = field(default_factory=dict[str, JudgeStats])
    judges_agree: float | None = None
    """Of a panel: share of items on which all agree."""
    rows: int = 0
    undecided: int = 0
    """Items whose completions all tie."""
    failed: Counter[str] = field(default_factory=Counter[str])
    """By status."""
    calls: int = 0
    """Calls of this time."""
    cached: int = 0
    account: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    """Calls and dollars over the life of each cache."""
    agreement: Agreement | None = None


def main(config: JudgeConfig) -> JudgeSummary:
    """Ask every judge about every item; replies in the cache are not requested again.

    Raises:
        DataError: an item cannot be judged.
        JudgeError: an endpoint cannot be used at all.
    """
    with Run(config.out, config.model_dump(mode="json")) as run:
        return _judge(config, run)


def _judge(c: JudgeConfig, run: Run) -> JudgeSummary:
    items = read_items(c.data, c.limit)
    for number, item in enumerate(items, 1):
        if not 2 <= len(item.completions) <= len(LETTERS) and c.mode != "score":
            raise DataError(
                f"{c.data}: row {number}: {len(item.completions)} completions; a judge compares 2 to "
                f"{len(LETTERS)} (mode: score takes any number)"
            )
    by_judge: list[list[Judgement]] = []
    summary = JudgeSummary(len(items))
    why: dict[str, str] = {}
    for spec in c.judges():
        replies = (
            _ask(spec, items) if c.launch.type == "none" else _ask_on_ray(spec, items, c.launch)
        )
        judgements = replies.judgements
        summary.calls += replies.calls
        summary.cached += replies.cached
        summary.account[str(spec.cache)] = replies.account._asdict()
        for j in judgements:
            if j.status == "error":
                summary.failed[str(j.detail["failure"])] += 1
                why.setdefault(str(j.detail["failure"]), str(j.detail["why"]))
        by_judge.append(judgements)
        name = replies.judge
        while name in summary.judges:
            name += "'"
        summary.judges[name] = about(judgements)
    labels = by_judge[0]
    if len(by_judge) > 1:
        voted = [majority(panel_labels) for panel_labels in zip(*by_judge, strict=True)]
        labels = [j for j in voted if j is not None]
        records.write(run.path / "majority.jsonl", labels)
        alike = [j.detail["agree"] == len(j.detail["judges"]) for j in labels]
        summary.judges_agree = sum(alike) / len(alike) if alike else None
    rows = comparison_rows({item.id: item for item in items}, labels, ties=False)
    records.write(run.path / records.ITEMS, items)
    records.write(run.path / records.JUDGEMENTS, itertools.chain.from_iterable(by_judge))
    records.write(run.path / "rows.jsonl", rows)
    summary.rows = len(rows)
    summary.undecided = sum(j.ranks is not None for j in labels) - len(rows)
    summary.agreement = agreement(items, labels)
    write_summary(run.path, summary)
    _log(c, summary, why)
    return summary


@dataclass(slots=True)
class _Replies:
    """What a judge said of some items."""

    judge: str
    judgements: list[Judgement]
    calls: int
    cached: int
    account: Account


def _ask(
    spec: JudgeSpec, items: Sequence[Item], cache: SharedCache | None = None, quiet: bool = False
) -> _Replies:
    judge = Judge(spec, cache)
    with judge.client, nullcontext() if quiet else bar(f"judge {judge.name}") as show:
        judgements = judge.client.map(items, judge, show)
        client = judge.client
        account = client.cache.account()
        return _Replies(judge.name, judgements, client.calls, client.cached, account)


def _ask_on_ray(spec: JudgeSpec, items: Sequence[Item], launch: PartLaunchSpec) -> _Replies:
    """``_ask`` with parts of the items on the workers of a cluster.

    Raises:
        JudgeError: a part failed twice.
    """
    parts = launch.parts(len(items))
    names = [f"judge {spec.model}: items {p.start + 1} to {p.stop}" for p in parts]
    done: dict[int, _Replies] = {}
    with ray_session(), bar(f"judge {spec.model}", len(items)) as show:

        def take(part: int, replies: _Replies) -> None:
            done[part] = replies
            show(sum(len(a.judgements) for a in done.values()))

        cache = SharedCache(spec.cache)
        jobs = [
            Job(name, _ask, (spec, items[p.start : p.stop], cache, True))
            for name, p in zip(names, parts, strict=True)
        ]
        failures = run_jobs(jobs, Resources(launch.threads, launch.gpus, launch.workers), take)
        account = cache.account()
        cache.stop()
    if failures:
        lines = [f"{names[part]} failed twice: {why}" for part, why in failures.items()]
        raise JudgeError(
            "\n  ".join(lines)
            + f"\nreplies so far are in {spec.cache}; run the same command again to ask only for the rest"
        )
    ordered = [done[i] for i in range(len(parts))]
    return _Replies(
        ordered[0].judge,
        [j for replies in ordered for j in replies.judgements],
        sum(replies.calls for replies in ordered),
        sum(replies.cached for replies in ordered),
        account,
    )


def about(judgements: Sequence[Judgement]) -> JudgeStats:
    """See ``JudgeStats``."""
    ok = [j for j in judgements if j.ranks is not None]
    first = decided = same = both = 0
    for j in ok:
        by_pair: dict[tuple[int, ...], list[float]] = {}
        for order in j.detail["orders"]:
            if "share" not in order:
                continue
            order_shown: list[int] = order["shown"]
            by_pair.setdefault(tuple(sorted(order_shown)), []).append(order["share"])
            # ``share`` is of the lower index.
            won = order["share"] if order_shown[0] < order_shown[1] else 1 - order["share"]
            if won != 0.5:
                decided += 1
                first += won == 1.0
        for shares in by_pair.values():
            if len(shares) == 2:
                both += 1
                same += shares[0] == shares[1] != 0.5
    return JudgeStats(
        judged=len(ok),
        ties=sum(max(j.ranks or (0,)) == 0 for j in ok) / len(ok) if ok else None,
        consistency=same / both if both else None,
        first=Rate(first / decided, *wilson(first, decided)) if decided else None,
    )


def agreement(items: Sequence[Item], labels: Sequence[Judgement]) -> Agreement | None:
    """Agreement of ``labels`` with the ranks in the rows, over pairs that these do not tie."""
    ranks_of_rows = {i.id: cast("list[int]", i.extra["ranks"]) for i in items if "ranks" in i.extra}
    right: list[float] = []
    owner: list[str] = []
    for j in labels:
        truth = ranks_of_rows.get(j.item)
        if truth is None or j.ranks is None:
            continue
        for a, b in itertools.combinations(range(len(truth)), 2):
            if truth[a] == truth[b]:
                continue
            x = j.ranks[a] - j.ranks[b]
            right.append(0.5 if x == 0 else float((x < 0) == (truth[a] < truth[b])))
            owner.append(j.item)
    if not right:
        return None
    return Agreement(*bootstrap_mean(right, clusters=owner), len(right))


def _log(c: JudgeConfig, summary: JudgeSummary, why: dict[str, str]) -> None:
    for name, stats in summary.judges.items():
        text = f"{stats.judged} of {summary.items} items"
        if stats.ties is not None:
            text += f", {stats.ties:.0%} tied"
        if stats.consistency is not None:
            text += f", same winner in both orders {stats.consistency:.0%}"
        if (p := stats.first) is not None:
            text += f", the first shown wins {p.rate:.0%} [{p.low:.0%}, {p.high:.0%}]"
        log.info(f"judge: {name}: {text}")
    if (a := summary.agreement) is not None:
        log.info(
            f"  agrees with the ranks of {c.data} on {a.mean:.1%} "
            f"[{a.low:.1%}, {a.high:.1%}] of {a.pairs} pairs"
        )
    dollars = sum(a["dollars"] for a in summary.account.values())
    cost = f", ${dollars:.4f} spent so far" if c.price_in is not None else ""
    log.info(
        f"  {summary.calls} calls, {summary.cached} replies from the cache{cost}; {summary.rows} rows "
        f"({summary.undecided} items without a winner) -> {c.out}/rows.jsonl"
    )
    for status, count in summary.failed.items():
        log.info(f"  {count} without a verdict ({status}): {why[status]}")
    if summary.failed:
        log.info("  run the same command again to retry only those")
