"""What a format has no place for, and texts as messages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from pydantic import BaseModel

from trimtab.errors import DataError
from trimtab.feedback.judgement import Item, Judgement
from trimtab.feedback.records import parse_item, parse_judgement

KEY = "trimtab"
Row = dict[str, Any]
Dumped = tuple[list[Row], list[str]]
"""Rows, and in a sentence each what could not be written."""


def rest(record: BaseModel, known: Iterable[str] = ()) -> Row:
    """The fields that are neither in ``known`` nor at their default."""
    whole = record.model_dump(mode="json", exclude_defaults=True)
    return {k: v for k, v in whole.items() if k not in set(known)}


def packed(value: Any) -> str:
    """As text for a column: the same for the same value, which keeps rows comparable."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def unpacked(row: Mapping[str, Any]) -> Row:
    """The ``trimtab`` column; empty where there is none or it is no object."""
    given: Any = row.get(KEY)
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return {}
    return cast(Row, given) if isinstance(given, dict) else {}


def question(text: str) -> list[dict[str, Any]]:
    """A plain prompt as one turn of the user."""
    return [{"role": "user", "content": text}]


def plain(prompt: Sequence[Mapping[str, Any]]) -> str | None:
    """The text of a prompt that is one turn of the user and nothing else."""
    if len(prompt) == 1 and dict(prompt[0]) == {
        "role": "user",
        "content": prompt[0].get("content"),
    }:
        content = prompt[0]["content"]
        return content if isinstance(content, str) else None
    return None


def readable(prompt: Sequence[Mapping[str, Any]]) -> str:
    """A prompt for eyes: its text, or its turns one after another."""
    text = plain(prompt)
    if text is not None:
        return text
    return "\n\n".join(f"{m.get('role', '')}: {m.get('content', '')}" for m in prompt)


def shuffled(answers: Sequence[str]) -> list[int]:
    """An order of answers that follows from their texts: in files that put the chosen one first,
    the place would give the choice away."""
    key = [hashlib.sha256(f"{i} {a}".encode("utf-8", "surrogatepass")).digest() for i, a in
           enumerate(answers)]  # fmt: skip
    turned = [hashlib.sha256(a.encode("utf-8", "surrogatepass")).digest() for a in answers]
    return sorted(range(len(answers)), key=lambda i: (turned[i], key[i]))


def item(name: str, number: int, fields: Row) -> Item:
    """An item from fields of a file (see ``parse_item``)."""
    return parse_item(f"{name}: row {number}", fields)


def judgement(name: str, number: int, fields: Row) -> Judgement:
    """A judgement from fields of a file (see ``parse_judgement``)."""
    return parse_judgement(f"{name}: row {number}", fields)


def strict(j: Judgement) -> tuple[int, int] | None:
    """(better, worse) of a pair that is decided, else None."""
    if j.ranks is not None and len(j.ranks) == 2 and j.ranks[0] != j.ranks[1]:
        return (0, 1) if j.ranks[0] < j.ranks[1] else (1, 0)
    return None


def text(name: str, number: int, row: Mapping[str, Any], column: str) -> str:
    """A column that must hold text.

    Raises:
        DataError: it does not.
    """
    value = row.get(column)
    if not isinstance(value, str):
        kind = "is missing" if column not in row else f"holds {type(value).__name__}"
        raise DataError(f"{name}: row {number}: column {column!r} {kind}, and text is needed")
    return value
