"""Shared by all formats: fields without a place in a format, and texts as messages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from pydantic import BaseModel

from trimtab.data import sources
from trimtab.data.conversation import message_text
from trimtab.errors import DataError
from trimtab.feedback.judgement import Item, Judgement
from trimtab.feedback.records import Records, parse_item, parse_judgement
from trimtab.types import Row

KEY = "trimtab"
"""The column or field that holds what a format has no place for."""
Numbered = tuple[int, Judgement]
"""A judgement with its place among the records that were written; -1 in other tools' files."""


class Dump(NamedTuple):
    """Rows to write, and what could not be written."""

    rows: list[Row]
    omitted: list[str]
    """One sentence each."""


def other_fields(record: BaseModel, exclude: Iterable[str] = ()) -> Row:
    """The fields of a record that are neither in ``known`` nor at their default."""
    fields = record.model_dump(mode="json", exclude_defaults=True)
    return {k: v for k, v in fields.items() if k not in set(exclude)}


def other_item_fields(item: Item, *exclude: str) -> Row:
    """The fields of an item that a format has no place for: ``completions`` has one, and ``prompt``
    if it is one turn of the user."""
    return other_fields(
        item, ("completions", *exclude, *([] if plain(item.prompt) is None else ["prompt"]))
    )


def pack(value: Any) -> str:
    """JSON text for a column; equal values give equal texts, which keeps rows comparable."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def unpack(row: Mapping[str, Any]) -> Row:
    """The ``trimtab`` column; empty if there is none or it is no object."""
    value: Any = row.get(KEY)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return cast(Row, value) if isinstance(value, dict) else {}


def plain(prompt: Sequence[Mapping[str, Any]]) -> str | None:
    """The text of a prompt that is one turn of the user and nothing else."""
    if len(prompt) != 1 or dict(prompt[0]).keys() != {"role", "content"}:
        return None
    content = prompt[0]["content"]
    return content if prompt[0]["role"] == "user" and isinstance(content, str) else None


def readable(prompt: Sequence[Mapping[str, Any]]) -> str:
    """A prompt as one text: that of its only turn, or all turns with their roles."""
    text = plain(prompt)
    if text is not None:
        return text
    return "\n\n".join(f"{m.get('role', '')}: {message_text(dict(m))}" for m in prompt)


def order_by_text(completions: Sequence[str]) -> list[int]:
    """An order that depends only on the texts: in files that put the chosen completion first, the
    position would reveal the choice."""
    keys = [
        [hashlib.sha256(t.encode("utf-8", "surrogatepass")).digest() for t in (text, f"{i} {text}")]
        for i, text in enumerate(completions)
    ]
    return sorted(range(len(completions)), key=lambda i: keys[i])


def item_of(rows: sources.Rows, number: int, fields: Row) -> Item:
    """An item from the fields of a row (see ``parse_item``)."""
    return parse_item(f"{rows.name}: row {number}", fields)


def judgement_of(rows: sources.Rows, number: int, fields: Row) -> Judgement:
    """A judgement from the fields of a row (see ``parse_judgement``)."""
    return parse_judgement(f"{rows.name}: row {number}", fields)


def text_of(rows: sources.Rows, number: int, row: Mapping[str, Any], column: str) -> str:
    """A column that must hold text.

    Raises:
        DataError: it does not.
    """
    value = row.get(column)
    if not isinstance(value, str):
        problem = "is missing" if column not in row else f"holds {type(value).__name__}, not text"
        raise DataError(f"{rows.name}: row {number}: column {column!r} {problem}")
    return value


def numbered_by_item(records: Records) -> dict[str, list[Numbered]]:
    """The judgements of each item, with their place among all."""
    by_item: dict[str, list[Numbered]] = {name: [] for name in records.items}
    for number, j in enumerate(records.judgements):
        by_item[j.item].append((number, j))
    return by_item


def in_order(numbered: Iterable[Numbered]) -> list[Judgement]:
    """Judgements in the order in which they were written; those of other tools last."""
    return [j for _, j in sorted(numbered, key=lambda x: x[0] if x[0] >= 0 else float("inf"))]


def hidden_judgements(rows: sources.Rows, number: int, item: Item, hidden: Row) -> list[Numbered]:
    """Judgements that the format could not express, from the ``trimtab`` column."""
    return [
        (
            int(fields["number"]),
            judgement_of(rows, number, {**_without(fields, "number"), "item": item.id}),
        )
        for fields in cast("list[Row]", hidden.get("whole", []))
    ]


def _without(row: Row, key: str) -> Row:
    return {k: v for k, v in row.items() if k != key}


def unjudged(records: Records) -> list[str]:
    """The note on items without a judgement, if there are any."""
    count = len(records.items.keys() - {j.item for j in records.judgements})
    return [f"{count} items have no judgement"] if count else []
