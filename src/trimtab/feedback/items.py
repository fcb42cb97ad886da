"""Rows of a dataset as items: for judges, and for the label page."""

from dataclasses import dataclass, field
from typing import Any, cast

from trimtab.data import formats, sources
from trimtab.data.conversation import Text, message_text
from trimtab.data.schemas import with_completions
from trimtab.errors import DataError
from trimtab.feedback.judgement import Item
from trimtab.feedback.records import messages, parse_item
from trimtab.stats.ranking import dense_ranks
from trimtab.types import Row

MAX_COMPLETIONS = 9
"""Completions on a label page: each has a digit key."""


def read_items(path: str, limit: int | None = None) -> list[Item]:
    """Items of a file, for judges: lines of ``Item``, comparisons in TRL's columns, or ``prompt``
    with ``completions``. The row's ranks are saved as ``extra["ranks"]`` and never shown.

    ``chosen`` and ``rejected`` are sorted by their text, so that their position reveals nothing.

    Raises:
        DataError: the file or a row cannot be used; both are named.
    """
    rows = with_completions(sources.read(path, limit=limit))
    if all({"answers", "completions"} & row.keys() for _, row in rows.rows):
        items = [_ranked(f"{path}: row {number}", row) for number, row in rows.rows]
    else:
        items = [_pair(example) for example in formats.comparisons(rows)]
    ids: set[str] = set()
    for item, (number, _) in zip(items, rows.rows, strict=False):
        if item.id in ids:
            raise DataError(f"{path}: row {number}: id {item.id!r} occurs twice; ids must differ")
        ids.add(item.id)
    return items


def _ranked(where: str, row: Row) -> Item:
    """An item line, or a row whose other columns become ``extra``."""
    if "answers" in row:
        return parse_item(where, row)
    prompt, completions = row.get("prompt"), row["completions"]
    if not prompt or not isinstance(completions, list):
        raise DataError(f"{where}: needs a 'prompt' and a list of 'completions'")
    texts = [_last_turn(c) for c in cast("list[Any]", completions)]
    fields = {**row, "prompt": messages(prompt), "completions": texts}
    if not row.keys() <= Item.model_fields.keys():
        extra = {k: v for k, v in row.items() if k not in formats.COLUMNS or k == "ranks"}
        fields = {k: fields.get(k) for k in ("id", "prompt", "completions")} | {"extra": extra}
    return parse_item(where, fields)


def _pair(example: formats.Example) -> Item:
    texts = [_last_turn(a) for a in example.completions]
    ranked = sorted(zip(texts, example.ranks or [0, 0], strict=True))
    return Item(
        id=example.id,
        prompt=tuple(messages(example.prompt)),
        completions=tuple(text for text, _ in ranked),
        extra={**example.extra, "ranks": [rank for _, rank in ranked]},
    )


def _last_turn(completion: Any) -> str:
    return completion if isinstance(completion, str) else message_text(completion[-1])


# --- for the label page


@dataclass(frozen=True, slots=True)
class Entry:
    """An item with what the label queue needs to know."""

    item: Item
    gold: tuple[int, ...] | None = None
    """The known ranks [K], of a gold item."""
    score: float | tuple[tuple[float, ...], ...] = 0.0
    """How informative a judgement is, for ``order: active``; [K][K] gives it pair by pair."""


@dataclass(slots=True)
class Entries:
    """Entries of a file, and counts of what was dropped."""

    entries: list[Entry] = field(default_factory=list[Entry])
    merged: int = 0
    """Completions that repeat an earlier one of their row."""
    single: int = 0
    """Rows with fewer than two different completions."""
    repeated: int = 0
    """Rows that repeat an earlier row."""


def read_entries(
    path: str, *, limit: int | None, strict: bool, marks: bool, gold: bool = False
) -> Entries:
    """Items for the label page: ``prompt`` with ``completions``, or ``chosen`` and ``rejected``.

    Optional columns: ``id``, ``models`` [K], ``steps`` [K] of texts, ``score`` (see ``Entry``).

    Args:
        path: As ``trimtab.data.sources.read`` takes it.
        strict: A bad row is an error, not dropped.
        marks: Steps are marked, and one completion is enough.
        gold: ``ranks``, or the order of ``chosen`` and ``rejected``, are the known ranks.

    Raises:
        DataError: naming file, row and column.
    """
    rows = with_completions(sources.read(path, limit=limit, strict=strict))
    columns = sorted({name for _, row in rows.rows for name in row})
    single = marks and not {"completions", "chosen"} & set(columns)
    if not single and "chosen" not in columns and not {"prompt", "completions"} <= set(columns):
        raise DataError(
            f"{path}: columns {', '.join(columns)} hold no completions to compare; rename the "
            "columns to prompt+completions or chosen+rejected, or sample completions of the prompts "
            "with --model MODEL"
        )
    if not gold and not single:
        rows.rows = [(n, _without_ranks(row)) for n, row in rows.rows]
    examples = formats.demonstrations(rows) if single else formats.comparisons(rows)
    result = Entries()
    ids: set[str] = set()
    for example in examples:
        entry = _entry(example, result, rows, marks, gold)
        if entry is None:
            continue
        if entry.item.id in ids:
            result.repeated += 1
            continue
        ids.add(entry.item.id)
        result.entries.append(entry)
    if not result.entries:
        raise DataError(f"{path}: no row has two different completions to compare")
    return result


def _without_ranks(row: Row) -> Row:
    """The row with all completions tied, so that any comparison can be labelled again."""
    if isinstance(row.get("completions"), list):
        return {**row, "ranks": [0] * len(row["completions"]), "margin": None}
    return {**row, "tie": True, "margin": None}


def _entry(
    example: formats.Example, counts: Entries, rows: sources.Rows, marks: bool, gold: bool
) -> Entry | None:
    texts = [full_text(a) for a in example.completions]
    unique = [i for i, t in enumerate(texts) if t not in texts[:i]]
    counts.merged += len(texts) - len(unique)
    if len(unique) < 2 and not marks:
        counts.single += 1
        return None
    if len(unique) > MAX_COMPLETIONS:
        rows.bad(
            example.row,
            f"has {len(unique)} completions, but a label page shows at most {MAX_COMPLETIONS}",
        )
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
            raise ValueError("'steps' must hold a list of texts for each completion")
    except ValueError as error:
        rows.bad(example.row, str(error))
        return None
    if isinstance(example.prompt, str):
        extra["plain"] = True
    fields: Row = {"extra": extra}
    if models is not None:
        fields["models"] = tuple(None if models[i] is None else str(models[i]) for i in unique)
    if marks:
        listed = [lines(texts[i]) if steps is None else steps[i] for i in unique]
        fields["steps"] = tuple(tuple(s) for s in listed)
    item = Item.of(messages(example.prompt), [texts[i] for i in unique], **fields)
    if example.id != str(example.row):
        item = item.model_copy(update={"id": example.id})
    if not isinstance(score, float | int):
        score = tuple(tuple(score[i][j] for j in unique) for i in unique)
    ranks = dense_ranks([(example.ranks or [0])[i] for i in unique]) if gold else None
    return Entry(item, ranks, score)


def full_text(completion: Text) -> str:
    """A completion as a person reads it; several turns with their roles."""
    if isinstance(completion, str):
        return completion
    if len(completion) == 1:
        return message_text(completion[0])
    return "\n\n".join(f"**{m['role']}:** {message_text(m)}" for m in completion)


def lines(text: str) -> list[str]:
    """The lines of a text that are not blank; the text itself if there are none."""
    return [line.strip() for line in text.splitlines() if line.strip()] or [text]


def _column(value: Any, name: str, k: int) -> list[Any] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(cast("list[Any]", value)) != k:
        raise ValueError(f"{name!r} must list {k} values, one per completion")
    return cast("list[Any]", value)


def _score(value: Any, k: int) -> float | tuple[tuple[float, ...], ...]:
    if isinstance(value, int | float):
        return float(value)
    try:
        table = tuple(tuple(float(x) for x in row) for row in value)
    except (TypeError, ValueError):
        table = ()
    if [len(row) for row in table] != [k] * k:
        raise ValueError(f"'score' must be a number, or {k} rows of {k} numbers, one per pair")
    return table
