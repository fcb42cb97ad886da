"""Items from a file, and labels to rows that training reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from trimtab.data import formats, sources
from trimtab.errors import DataError
from trimtab.feedback.judgement import Item, Judgement
from trimtab.runs import to_json, write_atomic

Messages = list[dict[str, Any]]


def read_items(path: str, limit: int | None = None) -> list[Item]:
    """Items of a file: lines of ``Item``, or rows of comparisons in TRL's columns, or ``prompt``
    with ``completions``. Ranks that a row has stay in ``extra["ranks"]``; nobody is shown them.

    ``chosen`` and ``rejected`` are put in the order of their texts, so that places tell nothing.

    Raises:
        DataError: the file or a row cannot be used; both are named.
    """
    rows = sources.read(path, limit=limit)
    if all("answers" in row for _, row in rows.rows):
        items = [_item(path, number, row) for number, row in rows.rows]
    elif all("completions" in row for _, row in rows.rows):
        items = [_row(path, number, row) for number, row in rows.rows]
    else:
        items = [_pair(e) for e in formats.comparisons(rows)]
    seen: set[str] = set()
    for item, (number, _) in zip(items, rows.rows, strict=False):
        if item.id in seen:
            raise DataError(
                f"{path}: row {number}: id {item.id!r} stands there twice; ids must differ"
            )
        seen.add(item.id)
    return items


def _item(path: str, number: int, row: dict[str, Any]) -> Item:
    try:
        if isinstance(row.get("prompt"), str):
            row = {**row, "prompt": _messages(row["prompt"])}
        if row.get("id") is None:
            given = {k: v for k, v in row.items() if k not in ("id", "prompt", "answers")}
            return Item.of(row["prompt"], row["answers"], **given)
        return Item.model_validate({**row, "id": str(row["id"])})
    except (ValidationError, TypeError, KeyError) as error:
        why = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": error}
        where = ".".join(str(p) for p in cast("tuple[Any, ...]", why["loc"]))
        raise DataError(
            f"{path}: row {number}: {where + ': ' if where else ''}{why['msg']}; an item has id, "
            "prompt (text or messages), answers, and may have models, steps and extra"
        ) from None


def _row(path: str, number: int, row: dict[str, Any]) -> Item:
    prompt, answers = row.get("prompt"), row["completions"]
    if not prompt or not isinstance(answers, list):
        raise DataError(f"{path}: row {number}: needs a 'prompt' and a list of 'completions'")
    texts = [_said(a) for a in cast(list[Any], answers)]
    extra = {k: v for k, v in row.items() if k not in formats.COLUMNS or k == "ranks"}
    name = row.get("id")
    made = Item.of(_messages(prompt), texts, extra=extra)
    return made if name is None else made.model_copy(update={"id": str(name)})


def _pair(e: formats.Example) -> Item:
    ranks = e.ranks or [0, 0]
    both = sorted(zip([_said(a) for a in e.answers], ranks, strict=True))
    return Item(
        id=e.id,
        prompt=tuple(_messages(e.prompt)),
        answers=tuple(text for text, _ in both),
        extra={**e.extra, "ranks": [rank for _, rank in both]},
    )


def _messages(prompt: Any) -> Messages:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _said(answer: Any) -> str:
    """The last turn of an answer."""
    return answer if isinstance(answer, str) else str(answer[-1]["content"])


def read_judgements(path: str | Path) -> list[Judgement]:
    """Lines of ``Judgement``.

    Raises:
        DataError: a line is none; file and row are named.
    """
    found: list[Judgement] = []
    for number, row in sources.read(str(path)).rows:
        try:
            found.append(Judgement.model_validate_json(to_json(row)))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(p) for p in first["loc"]) or "row"
            raise DataError(
                f"{path}: row {number}: {where}: {first['msg']}; expected a judgement, as "
                "'trimtab judge' writes them"
            ) from None
    return found


def write_lines(path: Path, records: Iterable[Item | Judgement | dict[str, Any]]) -> None:
    """One record a line, whole or not at all."""
    texts = [
        to_json(r) if isinstance(r, dict) else r.model_dump_json(exclude_defaults=True)
        for r in records
    ]
    write_atomic(path, "".join(t + "\n" for t in texts).encode("utf-8", "replace"))


def label_rows(
    items: Sequence[Item], judgements: Iterable[Judgement]
) -> tuple[list[dict[str, Any]], int]:
    """Rows for ``trimtab reward`` and ``trimtab dpo``: prompt, completions, ranks, annotator.

    Empty answers are left out of their row, and so are items whose answers all tie: they teach
    nothing.

    Returns:
        The rows, and how many judged items gave none.
    """
    known = {item.id: item for item in items}
    rows: list[dict[str, Any]] = []
    without = 0
    for j in judgements:
        if j.ranks is None:
            continue
        item = known[j.item]
        kept: dict[str, int] = {}
        for text, rank in zip(item.answers, j.ranks, strict=True):
            if text.strip():
                kept.setdefault(text, rank)
        if len(set(kept.values())) < 2:
            without += 1
            continue
        # Ranks from 0 without gaps, as training wants them.
        places = {r: i for i, r in enumerate(sorted(set(kept.values())))}
        row: dict[str, Any] = {
            **{k: v for k, v in item.extra.items() if k not in formats.COLUMNS},
            "id": item.id,
            "prompt": list(item.prompt),
            "completions": list(kept),
            "ranks": [places[r] for r in kept.values()],
            "annotator": j.annotator,
            "who": j.who,
        }
        rows.append(row)
    return rows, without
