"""``trimtab revise``: demonstrations from a model's own answers, critiqued and written anew."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from trimtab.data import formats
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
from trimtab.runs import Run, write_atomic
from trimtab.runs.console import bar, console


class ReviseConfig(ClientSpec):
    """Configuration of ``trimtab revise``."""

    out: str = "runs/revise"
    """Gets demonstrations.jsonl (rows for sft), revisions.jsonl, summary.json and, if ``cache`` is
    not given, cache.sqlite."""
    data: str
    """Items; the first answer of each is revised."""
    limit: int | None = Field(default=None, gt=0)
    rubric: str = "hhh"
    """The constitution: a rubric of the package, or a YAML file."""
    principles: Literal["all", "one"] = "one"
    """Show one principle a round, drawn by item and round, or all of them."""
    rounds: int = Field(default=1, gt=0)
    """Critiques and revisions, each of what the last one wrote."""


@dataclass(frozen=True, slots=True)
class _Revised:
    item: Item
    answers: list[str]
    """The first, and what each round made of it."""
    critiques: list[str]
    failure: Failure | None = None


def _said(reply: Reply) -> dict[str, Any]:
    said = read(reply, Revision)
    if not said["revision"].strip():
        raise InvalidReplyError("the revision is empty")
    return said


def main(config: ReviseConfig) -> dict[str, Any]:
    """Critique and revise. An answer whose revision failed gives no row.

    Returns:
        ``items``, ``rows``, ``changed`` (share of rows that differ from the first answer),
        ``failed``, ``calls`` and ``cached``.

    Raises:
        JudgeError: the endpoint cannot be used at all.
        DataError: no revision came through.
    """
    c = config
    rubric = load_rubric(c.rubric)
    items = read_items(c.data, c.limit)
    run = Run(c.out, c.model_dump(mode="json"))
    spec = c.model_copy(update={"cache": c.cache or str(Path(c.out) / "cache.sqlite")})
    with Client(spec) as client, bar("revise") as show:

        async def work(item: Item) -> _Revised:
            done = _Revised(item, [item.completions[0]], [])
            for turn in range(c.rounds):
                shown = rubric
                if c.principles == "one":
                    shown = rubric.principle(f"{item.id}/{turn}")
                question = revise(shown, item.prompt, done.answers[-1])
                got = await client.ask(question.messages, question.answer, _said)
                if isinstance(got, Failure):
                    return _Revised(item, done.answers, done.critiques, got)
                done.answers.append(got.value["revision"])
                done.critiques.append(got.value["critique"])
            return done

        found = client.map(items, work, show)
        calls, cached = client.calls, client.cached
    whole = [r for r in found if r.failure is None]
    if not whole:
        why = next(r.failure.detail for r in found if r.failure is not None)
        raise DataError(f"{c.data}: no answer was revised; the first failure was: {why}")
    records.write(run.path / "demonstrations.jsonl", [_row(r) for r in whole])
    records.write(run.path / "revisions.jsonl", [_told(r) for r in found])
    figures: dict[str, Any] = {
        "items": len(items),
        "rows": len(whole),
        "changed": _share(whole),
        "failed": len(found) - len(whole),
        "calls": calls,
        "cached": cached,
    }
    write_atomic(run.path / "summary.json", json.dumps(figures, indent=1).encode())
    console.print(
        f"[bold]revise[/bold]: {len(whole)} of {len(items)} answers by {rubric.name}, "
        f"{figures['changed']:.0%} changed; {calls} calls, {cached} replies from the cache -> "
        f"{c.out}/demonstrations.jsonl"
    )
    if len(whole) < len(found):
        why = next(r.failure.detail for r in found if r.failure is not None)
        console.print(
            f"  {len(found) - len(whole)} failed, the first: {why}; the same command retries"
        )
    return figures


def _share(whole: Sequence[_Revised]) -> float:
    return sum(r.answers[0] != r.answers[-1] for r in whole) / len(whole)


def _row(r: _Revised) -> dict[str, Any]:
    extra = {k: v for k, v in r.item.extra.items() if k not in formats.COLUMNS}
    answer = {"role": "assistant", "content": r.answers[-1]}
    # As prompt and completion, earlier turns of the assistant are not trained on.
    return {**extra, "id": r.item.id, "prompt": list(r.item.prompt), "completion": [answer]}


def _told(r: _Revised) -> dict[str, Any]:
    failed = {} if r.failure is None else {"failure": r.failure.status, "why": r.failure.detail}
    return {"item": r.item.id, "answers": r.answers, "critiques": r.critiques, **failed}
