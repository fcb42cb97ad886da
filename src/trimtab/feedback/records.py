"""Reading and writing items and judgements: lines of JSON, both kinds in one file or in several."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from trimtab.data import sources
from trimtab.errors import DataError
from trimtab.feedback.judgement import Item, Judgement
from trimtab.runs import write_atomic


@dataclass(slots=True)
class Records:
    """Items with what was said of them."""

    items: dict[str, Item] = field(default_factory=dict[str, Item])
    """By id, in the order read."""
    judgements: list[Judgement] = field(default_factory=list[Judgement])
    """In the order read, those taken back among them."""

    def add(self, item: Item) -> None:
        """One more item; the same one again is nothing new.

        Raises:
            DataError: another item has this id.
        """
        known = self.items.setdefault(item.id, item)
        if known != item:
            raise DataError(
                f"item {item.id!r} is there twice with different contents; give each its own id"
            )

    def current(self) -> list[Judgement]:
        """Judgements that stand: not one that a later one replaces, and no line twice."""
        standing: dict[tuple[str, str], list[Judgement]] = defaultdict(list)
        for j in self.judgements:
            mine = standing[j.item, j.annotator]
            if j in mine:
                continue
            if j.replaces is not None and mine:
                named = [k for k in mine if k.detail.get("id") == j.replaces]
                mine.remove(named[0] if named else mine[-1])
            mine.append(j)
        kept = {id(j) for mine in standing.values() for j in mine}
        return [j for j in self.judgements if id(j) in kept]

    def check(self) -> None:
        """Every judgement must be of an item that is there and rank all its answers.

        Raises:
            DataError: naming the judgement at fault.
        """
        for number, j in enumerate(self.judgements, 1):
            item = self.items.get(j.item)
            if item is None:
                raise DataError(
                    f"judgement {number} by {j.annotator!r} is of item {j.item!r}, which is in none "
                    "of the files; give the file of the items too"
                )
            wrong = [
                (name, len(given))
                for name, given in (("ranks", j.ranks), ("shown", j.shown))
                if given is not None and len(given) != len(item.answers)
            ]
            wrong += [(k, len(v)) for k, v in j.dimensions.items() if len(v) != len(item.answers)]
            wrong += [(k, len(v)) for k, v in j.scores.items() if len(v) != len(item.answers)]
            if wrong:
                name, count = wrong[0]
                raise DataError(
                    f"judgement {number} by {j.annotator!r}: {name} has {count} places and item "
                    f"{j.item!r} {len(item.answers)} answers"
                )


def fault(error: ValidationError) -> str:
    """The first fault in a line: where, what."""
    first = error.errors()[0]
    where = ".".join(str(p) for p in first["loc"])
    return f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}"


def is_record(row: dict[str, Any]) -> bool:
    """Whether a row is an ``Item`` or a ``Judgement`` by its columns."""
    return {"id", "prompt", "answers"} <= row.keys() or {"item", "annotator"} <= row.keys()


def take(rows: sources.Rows, into: Records) -> None:
    """Read rows that are items or judgements.

    Raises:
        DataError: a row is neither, or is not well formed; names file and row.
    """
    for number, row in rows.rows:
        kind: type[Item] | type[Judgement] = Item if "answers" in row else Judgement
        try:
            made = kind.model_validate(row)
        except ValidationError as error:
            what = "an item" if kind is Item else "a judgement"
            raise DataError(
                f"{rows.name}: row {number}: not {what}: {fault(error)}; other formats are read by "
                "'trimtab exchange FILE --to LABELS.jsonl'"
            ) from None
        if isinstance(made, Item):
            try:
                into.add(made)
            except DataError as error:
                raise DataError(f"{rows.name}: row {number}: {error}") from None
        else:
            into.judgements.append(made)


def read(paths: Sequence[str]) -> Records:
    """Items and judgements of .jsonl, .json or .parquet files, each also .gz.

    Raises:
        DataError: a file or row cannot be used, or a judgement is of no item that is there.
    """
    found = Records()
    for path in paths:
        take(sources.read(path), found)
    found.check()
    return found


def line(record: BaseModel) -> str:
    """A record as a line of JSON; what has its default value is left out."""
    return json.dumps(record.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False)


def lines(records: Iterable[BaseModel]) -> bytes:
    """A whole file."""
    return "".join(line(r) + "\n" for r in records).encode("utf-8", "surrogatepass")


def write(path: Path, records: Records) -> None:
    """Items, then judgements, in one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lines(records.items.values()) + lines(records.judgements))
