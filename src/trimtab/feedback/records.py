"""Labels on disk: the one reader and the one writer of items and judgements.

A label file has one JSON object per line, items and judgements in one file or in several. A label
folder holds ``items.jsonl`` and ``judgements.jsonl``, or the label app's store.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from trimtab.data import sources
from trimtab.errors import DataError
from trimtab.feedback.judgement import Item, Judgement, Message
from trimtab.runs import to_json, write_atomic
from trimtab.types import Row

ITEMS, JUDGEMENTS = "items.jsonl", "judgements.jsonl"
STORE = "labels.sqlite3"
"""The label app's database in its folder."""


@dataclass(slots=True)
class Records:
    """Items with the judgements of them."""

    items: dict[str, Item] = field(default_factory=dict[str, Item])
    """By id, in the order read."""
    judgements: list[Judgement] = field(default_factory=list[Judgement])
    """In the order read, including those that a later one replaces."""

    def add(self, item: Item) -> None:
        """Add an item; adding the same one again changes nothing.

        Raises:
            DataError: another item has this id.
        """
        if self.items.setdefault(item.id, item) != item:
            raise DataError(
                f"item {item.id!r} occurs twice with different contents; give each its own id"
            )

    def merge(self, other: Records) -> None:
        """Add all of ``other``."""
        for item in other.items.values():
            self.add(item)
        self.judgements += other.judgements

    def current(self) -> list[Judgement]:
        """Judgements that no later one replaces, without duplicate lines."""
        current: dict[tuple[str, str], list[Judgement]] = defaultdict(list)
        for j in self.judgements:
            earlier = current[j.item, j.annotator]
            if j in earlier:
                continue
            if j.replaces is not None and earlier:
                named = [k for k in earlier if k.detail.get("id") == j.replaces]
                earlier.remove(named[0] if named else earlier[-1])
            earlier.append(j)
        ids = {id(j) for judgements in current.values() for j in judgements}
        return [j for j in self.judgements if id(j) in ids]

    def check(self) -> None:
        """Check that the item of every judgement exists and has as many completions as it ranks.

        Raises:
            DataError: naming the first judgement that does not fit.
        """
        for number, j in enumerate(self.judgements, 1):
            item = self.items.get(j.item)
            if item is None:
                raise DataError(
                    f"judgement {number} by {j.annotator!r}: its item {j.item!r} is in none of the "
                    "files; add the file that holds the items"
                )
            lists = [("ranks", j.ranks), ("order", j.order)]
            for name, values in (*lists, *j.dimensions.items(), *j.scores.items()):
                if values is not None and len(values) != len(item.completions):
                    raise DataError(
                        f"judgement {number} by {j.annotator!r}: {name} has {len(values)} values, "
                        f"but item {j.item!r} has {len(item.completions)} completions"
                    )


def is_record(row: Mapping[str, Any]) -> bool:
    """Whether a row is an ``Item`` or a ``Judgement`` by its columns."""
    return _is_item(row) or {"item", "annotator"} <= row.keys()


def _is_item(row: Mapping[str, Any]) -> bool:
    if {"id", "prompt", "answers"} <= row.keys():
        return True
    return {"id", "prompt", "completions"} <= row.keys() <= Item.model_fields.keys()


def _fault(error: ValidationError) -> str:
    """The first fault: field and reason."""
    first = error.errors()[0]
    where = ".".join(str(p) for p in first["loc"])
    return f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}"


def messages(prompt: Any) -> list[Message]:
    """A prompt as messages: plain text becomes one turn of the user."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [dict(cast(Row, m)) for m in prompt]


def parse_item(where: str, row: Mapping[str, Any]) -> Item:
    """An item from the fields of a row; without ``id``, one is derived from the content.

    Args:
        where: File and row, for the error message.
        row: The fields; ``prompt`` may be plain text.

    Raises:
        DataError: the row is no well-formed item.
    """
    fields = dict(row)
    try:
        if isinstance(fields.get("prompt"), str):
            fields["prompt"] = messages(fields["prompt"])
        if fields.get("id") is not None:
            return Item.model_validate({**fields, "id": str(fields["id"])})
        fields.pop("id", None)
        prompt = fields.pop("prompt")
        completions = fields.pop("answers" if "answers" in fields else "completions")
        return Item.of(list(prompt), list(completions), **fields)
    except (ValidationError, TypeError, KeyError) as error:
        fault = _fault(error) if isinstance(error, ValidationError) else f"missing or wrong {error}"
        raise DataError(
            f"{where}: {fault}; an item has id, prompt (text or messages) and completions, and may "
            "have models, steps and extra"
        ) from None


def parse_judgement(where: str, row: Mapping[str, Any]) -> Judgement:
    """A judgement from the fields of a row.

    Raises:
        DataError: the row is no well-formed judgement.
    """
    try:
        return Judgement.model_validate(row)
    except ValidationError as error:
        raise DataError(
            f"{where}: {_fault(error)}; expected a judgement, as 'trimtab label' and 'trimtab judge' "
            "write them; other formats are read by 'trimtab exchange FILE --to LABELS.jsonl'"
        ) from None


def parse(rows: sources.Rows) -> Records:
    """Items and judgements of rows that hold nothing else.

    Raises:
        DataError: a row is neither, or is not well formed; names file and row.
    """
    records = Records()
    for number, row in rows.rows:
        where = f"{rows.name}: row {number}"
        if not ({"completions", "answers"} & row.keys()):
            records.judgements.append(parse_judgement(where, row))
            continue
        item = parse_item(where, row)
        try:
            records.add(item)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
    return records


def read(paths: Sequence[str]) -> Records:
    """Items and judgements of label folders and of .jsonl, .json or .parquet files, each also .gz.

    Raises:
        DataError: a file or row cannot be used, or the item of a judgement is missing.
    """
    records = Records()
    for path in paths:
        records.merge(read_folder(path) if Path(path).is_dir() else parse(sources.read(path)))
    records.check()
    return records


def read_judgements(path: str | Path) -> list[Judgement]:
    """The judgements of a file that holds nothing else.

    Raises:
        DataError: a row is no judgement; names file and row.
    """
    rows = sources.read(str(path)).rows
    return [parse_judgement(f"{path}: row {number}", row) for number, row in rows]


def read_folder(folder: str | Path) -> Records:
    """Items and judgements of a label folder. The label app's store, if there is one, is preferred
    to the files exported from it, because it is always up to date.

    Raises:
        DataError: the folder has neither a store nor both files.
    """
    folder = Path(folder)
    if (folder / STORE).is_file():
        try:
            with closing(sqlite3.connect(folder / STORE)) as db:
                return read_store(db)
        except sqlite3.DatabaseError as error:
            raise DataError(f"{folder / STORE}: cannot be read as a label store: {error}") from None
    missing = [name for name in (ITEMS, JUDGEMENTS) if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{folder}: no label folder: {' and '.join(missing)} missing; name a folder that "
            "'trimtab label' or 'trimtab judge' wrote, or a file"
        )
    return read([str(folder / ITEMS), str(folder / JUDGEMENTS)])


def read_store(db: sqlite3.Connection) -> Records:
    """Items and current judgements of a label store (see ``label/schema.sql``).

    ``detail["sort_seed"]`` is added to judgements of pairs that sorting asked for: ``sort_step``
    needs it to recover the order.
    """
    ask = db.execute("select value from meta where key = 'ask'").fetchone()
    sort = ask is not None and ask[0] == "sort"
    items = [Item.model_validate_json(r[0]) for r in db.execute("select record from item")]
    judgements: list[Judgement] = []
    for record, seed in db.execute("select record, seed from head order by n"):
        j = Judgement.model_validate_json(record)
        if sort:
            j = j.model_copy(update={"detail": {**j.detail, "sort_seed": seed}})
        judgements.append(j)
    return Records({item.id: item for item in items}, judgements)


def to_jsonl(records: Iterable[BaseModel | Row]) -> bytes:
    """One JSON object per line; fields of a record that have their default are omitted."""
    rows = (
        r.model_dump(mode="json", exclude_defaults=True) if isinstance(r, BaseModel) else r
        for r in records
    )
    # A lone surrogate in a judge's reply must not lose the whole file.
    return "".join(to_json(row) + "\n" for row in rows).encode("utf-8", "replace")


def write(path: Path, records: Records | Iterable[BaseModel | Row]) -> None:
    """Write a label file, creating its folder. ``Records``: items first, then judgements."""
    if isinstance(records, Records):
        records = [*records.items.values(), *records.judgements]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, to_jsonl(records))
