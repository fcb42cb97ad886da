"""``trimtab revise``: demonstrations from completions that a judge critiques and revises (2212.08073)."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from trimtab.data import formats
from trimtab.datagen.output import write_summary
from trimtab.errors import DataError
from trimtab.feedback import records
from trimtab.feedback.items import read_items
from trimtab.feedback.judgement import Item
from trimtab.judges.chat_completion import InvalidReplyError, Reply
from trimtab.judges.client import Client, Failure
from trimtab.judges.critique import Revision, revise
from trimtab.judges.judge_config import ClientSpec
from trimtab.judges.reply import read
from trimtab.judges.rubric import load_rubric
from trimtab.runs import Run
from trimtab.runs.console import bar
from trimtab.types import Row

log = logging.getLogger(__name__)


class ReviseConfig(ClientSpec):
    """Configuration of ``trimtab revise``."""

    out: str = "runs/revise"
    """Gets demonstrations.jsonl (rows for sft), revisions.jsonl, summary.json and, if ``cache`` is
    not given, cache.sqlite."""
    data: str
    """Items; the first completion of each is revised."""
    limit: int | None = Field(default=None, gt=0)
    rubric: str = "hhh"
    """The constitution: a rubric of the package, or a YAML file."""
    principles: Literal["all", "one"] = "one"
    """Show one principle per round, drawn by item and round, or all of them."""
    rounds: int = Field(default=1, gt=0)
    """Rounds of critique and revision; each revises the last revision."""


@dataclass(frozen=True, slots=True)
class _Revised:
    item: Item
    versions: list[str]
    """The first completion, then the revision of each round."""
    critiques: list[str]
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class ReviseSummary:
    """summary.json of ``trimtab revise``."""

    items: int
    rows: int
    changed: float
    """Share of rows that differ from the first completion."""
    failed: int
    calls: int
    cached: int


def _read_revision(reply: Reply) -> dict[str, Any]:
    value = read(reply, Revision)
    if not value["revision"].strip():
        raise InvalidReplyError("the revision is empty")
    return value


def main(config: ReviseConfig) -> ReviseSummary:
    """Critique and revise; a completion whose revision failed gives no row.

    Raises:
        JudgeError: the endpoint cannot be used at all.
        DataError: every revision failed.
    """
    with Run(config.out, config.model_dump(mode="json")) as run:
        return _revise(config, run)


def _revise(c: ReviseConfig, run: Run) -> ReviseSummary:
    rubric = load_rubric(c.rubric)
    items = read_items(c.data, c.limit)
    spec = c.model_copy(update={"cache": c.cache or str(Path(c.out) / "cache.sqlite")})
    with Client(spec) as client, bar("revise") as show:

        async def work(item: Item) -> _Revised:
            done = _Revised(item, [item.completions[0]], [])
            for turn in range(c.rounds):
                shown_rubric = rubric
                if c.principles == "one":
                    shown_rubric = rubric.principle(f"{item.id}/{turn}")
                question = revise(shown_rubric, item.prompt, done.versions[-1])
                got = await client.ask(question.messages, question.answer, _read_revision)
                if isinstance(got, Failure):
                    return _Revised(item, done.versions, done.critiques, got)
                done.versions.append(got.value["revision"])
                done.critiques.append(got.value["critique"])
            return done

        results = client.map(items, work, show)
        calls, cached = client.calls, client.cached
    revised = [r for r in results if r.failure is None]
    if not revised:
        why = next(r.failure.detail for r in results if r.failure is not None)
        raise DataError(f"{c.data}: no completion was revised; the first failure was: {why}")
    records.write(run.path / "demonstrations.jsonl", [_row(r) for r in revised])
    records.write(run.path / "revisions.jsonl", [_record(r) for r in results])
    summary = ReviseSummary(
        items=len(items),
        rows=len(revised),
        changed=sum(r.versions[0] != r.versions[-1] for r in revised) / len(revised),
        failed=len(results) - len(revised),
        calls=calls,
        cached=cached,
    )
    write_summary(run.path, summary)
    log.info(
        f"revise: {len(revised)} of {len(items)} completions by {rubric.name}, "
        f"{summary.changed:.0%} changed; {calls} calls, {cached} replies from the cache -> "
        f"{c.out}/demonstrations.jsonl"
    )
    if summary.failed:
        why = next(r.failure.detail for r in results if r.failure is not None)
        log.info(f"  {summary.failed} failed, the first: {why}; the same command retries")
    return summary


def _row(r: _Revised) -> Row:
    extra = {k: v for k, v in r.item.extra.items() if k not in formats.COLUMNS}
    completion = {"role": "assistant", "content": r.versions[-1]}
    # With prompt and completion apart, earlier turns of the assistant are not trained on.
    return {**extra, "id": r.item.id, "prompt": list(r.item.prompt), "completion": [completion]}


def _record(r: _Revised) -> Row:
    failed = {} if r.failure is None else {"failure": r.failure.status, "why": r.failure.detail}
    return {"item": r.item.id, "answers": r.versions, "critiques": r.critiques, **failed}
