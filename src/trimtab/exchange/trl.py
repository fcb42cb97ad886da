"""TRL's columns: ``prompt``/``chosen``/``rejected``, and K ranked ``completions``.

https://huggingface.co/docs/trl/dataset_formats. A tie has no place in chosen and rejected, and a
training library would take it for a choice: ties are left out there, and said; ``ranked`` has them.
"""

from __future__ import annotations

from typing import Any

from trimtab.data import formats, sources
from trimtab.errors import DataError
from trimtab.exchange import fields as rest
from trimtab.exchange.fields import KEY, Dumped, Row
from trimtab.feedback.judgement import Item, Judgement
from trimtab.feedback.records import Records

SHOWN = ("annotator", "who", "at", "seconds")
"""Fields of a judgement with a column of their own."""


def sniff(row: Row) -> bool:
    """Pairs."""
    return (
        isinstance(row.get("chosen"), (str, list))
        and "rejected" in row
        and not (
            isinstance(row["chosen"], list) and row["chosen"] and isinstance(row["chosen"][0], str)
        )
    )


def sniff_ranked(row: Row) -> bool:
    """K ranked answers."""
    return "completions" in row and "ranks" in row


def _said(answer: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": answer}]


def _columns(item: Item, j: Judgement, known: tuple[str, ...], **more: Any) -> Row:
    shown = {k: getattr(j, k) for k in SHOWN}
    column = {
        "judgement": rest.rest(j, (*SHOWN, "item", *known)),
        "item": rest.rest(item, ("prompt", "completions")),
        **more,
    }
    return {**shown, KEY: rest.packed(column)}


def dump(records: Records) -> Dumped:
    """A row for every pair of answers that a judgement decides."""
    rows: list[Row] = []
    silent = 0
    for number, j in enumerate(records.judgements):
        item = records.items[j.item]
        pairs = list(j.pairs())
        silent += not pairs
        whole = rest.strict(j) is not None and sorted(j.ranks or ()) == [0, 1]
        for better, worse in pairs:
            rows.append(
                {
                    "prompt": list(item.prompt),
                    "chosen": _said(item.completions[better]),
                    "rejected": _said(item.completions[worse]),
                    **_columns(
                        item, j, ("ranks",) if whole else (), number=number, pair=[better, worse],
                        **({} if whole and len(item.completions) == 2 else {"completions": item.completions}),
                    ),
                }
            )  # fmt: skip
    notes = [f"{silent} judgements decide no pair (ties, skipped, failed)"] if silent else []
    unasked = len(records.items.keys() - {j.item for j in records.judgements})
    return rows, notes + ([f"{unasked} items have no judgement"] if unasked else [])


def dump_ranked(records: Records) -> Dumped:
    """A row for every ranking, ties among them."""
    rows: list[Row] = []
    silent = 0
    for j in records.judgements:
        item = records.items[j.item]
        if j.ranks is None:
            silent += 1
            continue
        rows.append(
            {
                "prompt": list(item.prompt),
                "completions": [_said(a) for a in item.completions],
                "ranks": list(j.ranks),
                **_columns(item, j, ("ranks",)),
            }
        )
    notes = [f"{silent} judgements rank nothing (skipped, failed)"] if silent else []
    unasked = len(records.items.keys() - {j.item for j in records.judgements})
    return rows, notes + ([f"{unasked} items have no judgement"] if unasked else [])


def load(rows: sources.Rows) -> Records:
    """Pairs or rankings, plain or conversational, with the prompt given or shared.

    Answers of pairs are put in an order that does not tell which was chosen.
    """
    found = Records()
    numbers: dict[int, Judgement] = {}
    for number, row in rows.rows:
        kept = rest.unpacked(row)
        if "item" in kept and "judgement" in kept:
            _restore(rows.name, number, row, kept, found, numbers)
        else:
            _foreign(rows, number, row, found)
    return found


def _content(value: Any) -> str:
    return value if isinstance(value, str) else str(value[0]["content"])


def _restore(
    name: str, number: int, row: Row, kept: Row, found: Records, numbers: dict[int, Judgement]
) -> None:
    """A row that ``dump`` wrote. What its columns say counts."""
    shown = {k: row[k] for k in SHOWN if row.get(k) is not None}
    fields = {**kept["judgement"], **shown}
    if "completions" in row:
        answers = [_content(c) for c in row["completions"]]
        fields["ranks"] = row["ranks"]
    else:
        better, worse = kept["pair"]
        answers = list(kept.get("completions") or kept.get("answers") or ["", ""])
        answers[better], answers[worse] = _content(row["chosen"]), _content(row["rejected"])
        if "ranks" not in fields:
            fields["ranks"] = [0, 1] if better == 0 else [1, 0]
    item = rest.item(
        name, number, {**kept["item"], "prompt": row["prompt"], "completions": answers}
    )
    found.add(item)
    made = rest.judgement(name, number, {**fields, "item": item.id})
    place = kept.get("number")
    if place is None or place not in numbers:
        found.judgements.append(made)
    if place is not None:
        numbers[place] = made


def _foreign(rows: sources.Rows, number: int, row: Row, found: Records) -> None:
    """A row of someone else's."""
    one = sources.Rows(rows.name, [(number, row)], rows.strict)
    for example in formats.comparisons(one):
        texts = [_answer(a) for a in example.answers]
        if any(t is None for t in texts) or example.ranks is None:
            raise DataError(
                f"{rows.name}: row {number}: an answer of several turns; an item's answer is one text"
            )
        answers = [t for t in texts if t is not None]
        ranks = list(example.ranks)
        if len(answers) == 2:
            order = rest.shuffled(answers)
            answers, ranks = [answers[k] for k in order], [ranks[k] for k in order]
        prompt = (
            rest.question(example.prompt) if isinstance(example.prompt, str) else example.prompt
        )
        extra = {k: v for k, v in example.extra.items() if k not in SHOWN}
        item = rest.item(
            rows.name, number, {"prompt": prompt, "completions": answers, "extra": extra}
        )
        shown = {k: row[k] for k in SHOWN if row.get(k) is not None}
        found.items.setdefault(item.id, item)
        found.judgements.append(
            rest.judgement(
                rows.name, number, {"annotator": "data", **shown, "item": item.id, "ranks": ranks}
            )
        )


def _answer(value: formats.Text) -> str | None:
    if isinstance(value, str):
        return value
    return value[0]["content"] if len(value) == 1 else None
