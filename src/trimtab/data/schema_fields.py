"""Checked values of foreign rows, and completions with their preference as TRL's columns."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, TypeVar, cast

from trimtab.data.conversation import BadRowError, Message
from trimtab.types import Row

T = TypeVar("T")


def value_of(row: Row, name: str) -> Any:
    """The value of a column that must be there."""
    if row.get(name) is None:
        raise BadRowError(f"{name!r} is missing")
    return row[name]


def text_of(row: Row, name: str) -> str:
    """A column of text that is not empty."""
    value = value_of(row, name)
    if not isinstance(value, str) or not value.strip():
        raise BadRowError(f"{name!r} must be text that is not empty, got {value!r:.60}")
    return value


def number_of(row: Row, name: str) -> float:
    """A number; csv gives it as text, and true counts as 1."""
    try:
        number = float(value_of(row, name))
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRowError(f"{name!r} must be a number, got {row[name]!r:.60}")
    return number


def list_of(row: Row, name: str, kind: type[T], what: str) -> list[T]:
    """A column with a list of ``kind``; ``what`` says so in the error."""
    value = value_of(row, name)
    if isinstance(value, str):  # csv, and some parquet files, hold lists as JSON text
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, list) or not all(
        isinstance(x, kind) for x in cast("list[Any]", value)
    ):
        raise BadRowError(f"{name!r} must be {what}")
    return cast("list[T]", value)


def objects_of(row: Row, name: str) -> list[Row]:
    """A column with a list of objects, such as messages."""
    return list_of(row, name, dict, "a list of objects")


def choice_of(row: Row, name: str) -> int:
    """0 or 1: which of two completions was chosen."""
    number = number_of(row, name)
    if number not in (0, 1):
        raise BadRowError(f"{name!r} must be 0 or 1, got {row[name]!r:.60}")
    return int(number)


def user_turn(text: str, row: Row, *systems: str) -> list[Message]:
    """A turn of the user, after the system turn and the history of the row, if it has them."""
    messages: list[Message] = []
    for name in systems:
        if row.get(name):
            messages.append({"role": "system", "content": text_of(row, name)})
    for turn in row.get("history") or ():
        if not isinstance(turn, list) or [type(t) for t in cast("list[Any]", turn)] != [str, str]:
            raise BadRowError("'history' must list pairs of texts: the user's and the assistant's")
        question, answer = cast("list[str]", turn)
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    return [*messages, {"role": "user", "content": text}]


def compared(a: Any, b: Any, preference: float, *, prompt: Any = None, margin: bool = False) -> Row:
    """Two completions as chosen and rejected.

    Args:
        a: The first, as text or messages.
        b: The second.
        preference: Above 0 if the first is better, 0 for a tie.
        prompt: What they answer; None where both are whole conversations.
        margin: Whether the size of the preference is the margin.
    """
    chosen, rejected = (a, b) if preference >= 0 else (b, a)
    row: Row = {"chosen": chosen, "rejected": rejected}
    if prompt is not None:
        row["prompt"] = prompt
    if preference == 0:
        row["tie"] = True
    elif margin:
        row["margin"] = abs(preference)
    return row


def scored(prompt: Any, texts: Sequence[str], scores: Sequence[float]) -> Row:
    """Completions with scores, the higher the better: a pair with its margin, or ranks."""
    if len(texts) < 2:
        raise BadRowError("has fewer than two completions to compare")
    if len(texts) == 2:
        return compared(texts[0], texts[1], scores[0] - scores[1], prompt=prompt, margin=True)
    places = sorted(set(scores), reverse=True)
    return {
        "prompt": prompt,
        "completions": list(texts),
        "ranks": [places.index(s) for s in scores],
    }
