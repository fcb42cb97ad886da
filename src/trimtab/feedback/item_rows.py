"""Rows of a file as items to judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from trimtab.data import formats, sources
from trimtab.errors import DataError
from trimtab.feedback.judgement import Item

MOST = 9
"""Answers on a page: one digit key each."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An item with what the queue needs to know of it."""

    item: Item
    gold: tuple[int, ...] | None = None
    """The known ranks [K], of a gold item."""
    score: float | tuple[tuple[float, ...], ...] = 0.0
    """How much a judgement is worth, for ``order: active``; [K][K] tells it pair by pair."""


@dataclass(slots=True)
class Loaded:
    """Entries, and what was done to get them."""

    entries: list[Entry] = field(default_factory=list[Entry])
    merged: int = 0
    """Answers left out because an earlier one of their row is the same."""
    lone: int = 0
    """Rows left out because fewer than two different answers remain."""
    again: int = 0
    """Rows left out because an earlier one asks the same."""


def messages(prompt: formats.Text) -> list[dict[str, Any]]:
    """A prompt as messages."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [dict(m) for m in prompt]


def load(path: str, *, limit: int | None, strict: bool, marks: bool, gold: bool = False) -> Loaded:
    """Items of a file: ``prompt`` with ``completions``, or ``chosen`` and ``rejected``.

    Also read: ``id``, ``models`` [K], ``steps`` [K] of texts, ``score`` (see ``Entry``).

    Args:
        path: As ``trimtab.data.sources.read`` takes it.
        limit: Use the first rows only.
        strict: A bad row is an error.
        marks: Steps are wanted, and one answer is enough.
        gold: ``ranks`` and the order of ``chosen`` and ``rejected`` are the known answers.

    Raises:
        DataError: naming file, row and column.
    """
    rows = sources.read(path, limit=limit, strict=strict)
    found = sorted({name for _, row in rows.rows for name in row})
    lone = marks and not {"completions", "chosen"} & set(found)
    if not lone and "chosen" not in found and not {"prompt", "completions"} <= set(found):
        raise DataError(
            f"{path}: columns {', '.join(found)} hold no answers to compare, which need "
            "prompt+completions or chosen+rejected; rename the columns, or sample answers to the "
            "prompts with --model MODEL"
        )
    if not gold and not lone:
        rows.rows = [(n, _unranked(row)) for n, row in rows.rows]
    examples = formats.demonstrations(rows) if lone else formats.comparisons(rows)
    loaded = Loaded()
    seen: dict[str, int] = {}
    for example in examples:
        entry = _entry(example, loaded, rows, marks, gold)
        if entry is None:
            continue
        if entry.item.id in seen:
            loaded.again += 1
            continue
        seen[entry.item.id] = example.row
        loaded.entries.append(entry)
    if not loaded.entries:
        raise DataError(f"{path}: no row has two different answers to compare")
    return loaded


def _unranked(row: dict[str, Any]) -> dict[str, Any]:
    """The row with all answers alike, so that any file of ranked answers can be asked anew."""
    if isinstance(row.get("completions"), list):
        return {**row, "ranks": [0] * len(row["completions"]), "margin": None}
    return {**row, "tie": True, "margin": None}


def _entry(
    example: formats.Example, loaded: Loaded, rows: sources.Rows, marks: bool, gold: bool
) -> Entry | None:
    texts = [formats_text(a) for a in example.answers]
    keep = [i for i, t in enumerate(texts) if t not in texts[:i]]
    loaded.merged += len(texts) - len(keep)
    if len(keep) < 2 and not marks:
        loaded.lone += 1
        return None
    if len(keep) > MOST:
        rows.bad(example.row, f"has {len(keep)} answers; a page holds {MOST}, so give fewer")
        return None
    extra = dict(example.extra)
    try:
        models = _column(extra.pop("models", None), "models", len(texts))
        steps = _column(extra.pop("steps", None), "steps", len(texts))
        score = _score(extra.pop("score", 0.0), len(texts))
        if steps is not None and any(
            not isinstance(s, list) or not all(isinstance(t, str) for t in cast("list[Any]", s))
            for s in steps
        ):
            raise ValueError("'steps' must list the steps of each answer as texts")
    except ValueError as error:
        rows.bad(example.row, str(error))
        return None
    if isinstance(example.prompt, str):
        extra["plain"] = True
    given: dict[str, Any] = {"extra": extra}
    if models is not None:
        given["models"] = tuple(None if models[i] is None else str(models[i]) for i in keep)
    if marks:
        cut = [_lines(texts[i]) for i in keep] if steps is None else [steps[i] for i in keep]
        given["steps"] = tuple(tuple(s) for s in cut)
    asked, answers = messages(example.prompt), [texts[i] for i in keep]
    made = Item.of(asked, answers, **given)
    if example.id != str(example.row):
        made = made.model_copy(update={"id": example.id})
    if not isinstance(score, float | int):
        score = tuple(tuple(score[i][j] for j in keep) for i in keep)
    ranks = dense([(example.ranks or [0])[i] for i in keep]) if gold else None
    return Entry(made, ranks, score)


def formats_text(answer: formats.Text) -> str:
    """An answer as a person reads it; several turns with their roles."""
    if isinstance(answer, str):
        return answer
    if len(answer) == 1:
        return answer[0]["content"]
    return "\n\n".join(f"**{m['role']}:** {m['content']}" for m in answer)


def dense(ranks: Sequence[int]) -> tuple[int, ...]:
    """The same order with places 0, 1, 2, ... without gaps.

    >>> dense([3, 1, 3])
    (1, 0, 1)
    """
    places = sorted(set(ranks))
    return tuple(places.index(r) for r in ranks)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()] or [text]


def _column(value: Any, name: str, k: int) -> list[Any] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(cast("list[Any]", value)) != k:
        raise ValueError(f"{name!r} must list {k}, one for each answer")
    return cast("list[Any]", value)


def _score(value: Any, k: int) -> float | tuple[tuple[float, ...], ...]:
    if isinstance(value, int | float):
        return float(value)
    try:
        table = tuple(tuple(float(x) for x in row) for row in value)
    except (TypeError, ValueError):
        table = ()
    if [len(row) for row in table] != [k] * k:
        raise ValueError(f"'score' must be a number, or {k} rows of {k} numbers, one for each pair")
    return table
