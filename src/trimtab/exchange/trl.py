"""TRL's columns: ``prompt``/``chosen``/``rejected``, and K ranked ``completions``.

https://huggingface.co/docs/trl/dataset_formats. A tie cannot be expressed as chosen and rejected, and
a training library would take it for a choice: there ties are omitted and counted; ``ranked`` has them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trimtab.data import formats, sources
from trimtab.errors import DataError
from trimtab.exchange import fields as shared
from trimtab.exchange.fields import KEY, Dump
from trimtab.feedback.judgement import Item, Judgement, Message
from trimtab.feedback.records import Records, messages
from trimtab.types import Row

VISIBLE = ("annotator", "who", "at", "seconds")
"""Fields of a judgement with a column of their own."""


def sniff(row: Row) -> bool:
    """Whether a row is a pair."""
    chosen = row.get("chosen")
    texts = isinstance(chosen, list) and chosen and isinstance(chosen[0], str)
    return isinstance(chosen, (str, list)) and "rejected" in row and not texts


def sniff_ranked(row: Row) -> bool:
    """Whether a row has K ranked completions."""
    return "completions" in row and "ranks" in row


def _turn(completion: str) -> list[Message]:
    return [{"role": "assistant", "content": completion}]


def _columns(item: Item, j: Judgement, expressed: tuple[str, ...], **more: Any) -> Row:
    """Columns of the judgement, and the ``trimtab`` column with the rest."""
    column = {
        "judgement": shared.other_fields(j, (*VISIBLE, "item", *expressed)),
        "item": shared.other_fields(item, ("prompt", "completions")),
        **more,
    }
    return {**{k: getattr(j, k) for k in VISIBLE}, KEY: shared.pack(column)}


def dump(records: Records) -> Dump:
    """One row per pair of completions that a judgement decides."""
    rows: list[Row] = []
    undecided = 0
    for number, j in enumerate(records.judgements):
        item = records.items[j.item]
        pairs = list(j.pairs())
        undecided += not pairs
        # Chosen and rejected say all that the ranks of a decided pair do.
        complete = len(j.ranks or ()) == 2 and set(j.ranks or ()) == {0, 1}
        expressed = ("ranks",) if complete else ()
        more = {} if complete and len(item.completions) == 2 else {"completions": item.completions}
        for better, worse in pairs:
            row: Row = {
                "prompt": list(item.prompt),
                "chosen": _turn(item.completions[better]),
                "rejected": _turn(item.completions[worse]),
            }
            pair = {"number": number, "pair": [better, worse], **more}
            rows.append(row | _columns(item, j, expressed, **pair))
    notes = [f"{undecided} judgements decide no pair (ties, skipped, failed)"] if undecided else []
    return Dump(rows, notes + shared.unjudged(records))


def dump_ranked(records: Records) -> Dump:
    """One row per ranking, including ties."""
    rows: list[Row] = []
    for j in records.judgements:
        if j.ranks is None:
            continue
        item = records.items[j.item]
        row: Row = {
            "prompt": list(item.prompt),
            "completions": [_turn(text) for text in item.completions],
            "ranks": list(j.ranks),
        }
        rows.append(row | _columns(item, j, ("ranks",)))
    omitted = len(records.judgements) - len(rows)
    notes = [f"{omitted} judgements rank nothing (skipped, failed)"] if omitted else []
    return Dump(rows, notes + shared.unjudged(records))


def load(rows: sources.Rows) -> Records:
    """Pairs or rankings, plain or conversational, with an explicit or a shared prompt.

    The completions of other tools' pairs get an order that does not reveal which was chosen.
    """
    records = Records()
    numbers: set[int] = set()
    foreign: list[tuple[int, Row]] = []
    for number, row in rows.rows:
        column = shared.unpack(row)
        if "item" in column and "judgement" in column:
            _restore(rows, number, row, column, records, numbers)
        else:
            foreign.append((number, row))
    if foreign:
        _foreign(replace(rows, rows=foreign), records)
    return records


def _content(value: Any) -> str:
    return value if isinstance(value, str) else str(value[0]["content"])


def _restore(
    rows: sources.Rows, number: int, row: Row, column: Row, records: Records, numbers: set[int]
) -> None:
    """A row that ``dump`` wrote. Its visible columns take precedence.

    Args:
        numbers: Judgements restored so far: those of K completions have several rows.
    """
    visible = {k: row[k] for k in VISIBLE if row.get(k) is not None}
    fields = {**column["judgement"], **visible}
    if "completions" in row:
        completions = [_content(c) for c in row["completions"]]
        fields["ranks"] = row["ranks"]
    else:
        better, worse = column["pair"]
        # Files of earlier releases call them "answers".
        completions = list(column.get("completions") or column.get("answers") or ["", ""])
        completions[better], completions[worse] = _content(row["chosen"]), _content(row["rejected"])
        fields.setdefault("ranks", [0, 1] if better == 0 else [1, 0])
    item = shared.item_of(
        rows, number, {**column["item"], "prompt": row["prompt"], "completions": completions}
    )
    records.add(item)
    judgement = shared.judgement_of(rows, number, {**fields, "item": item.id})
    place = column.get("number")
    if place is None or place not in numbers:
        records.judgements.append(judgement)
    if place is not None:
        numbers.add(place)


def _foreign(rows: sources.Rows, records: Records) -> None:
    """Rows of another tool."""
    for example in formats.comparisons(rows):
        number = example.row
        if example.ranks is None or any(
            not isinstance(a, str) and len(a) > 1 for a in example.completions
        ):
            raise DataError(
                f"{rows.name}: row {number}: has a completion of several turns; an item's completion "
                "is one text"
            )
        texts = [_content(a) for a in example.completions]
        order = shared.order_by_text(texts) if len(texts) == 2 else list(range(len(texts)))
        fields: Row = {
            "prompt": messages(example.prompt),
            "completions": [texts[k] for k in order],
            "extra": {k: v for k, v in example.extra.items() if k not in VISIBLE},
        }
        item = shared.item_of(rows, number, fields)
        records.items.setdefault(item.id, item)
        visible = {k: example.extra[k] for k in VISIBLE if example.extra.get(k) is not None}
        ranks = [example.ranks[k] for k in order]
        fields = {"annotator": "data", **visible, "item": item.id, "ranks": ranks}
        records.judgements.append(shared.judgement_of(rows, number, fields))
