"""Argilla 2 records, as ``dataset.records.to_json`` writes them and ``from_json`` reads them.

People's verdicts are responses, an AI judge's is the suggestion. A pair is a label question
"preference" with the values response_1, response_2 and tie; more completions are a ranking question.
Argilla identifies users by UUID: a name always gives the same UUID, and is saved with it.
"""

from __future__ import annotations

import uuid
from typing import Any, cast

from trimtab.data import sources
from trimtab.errors import DataError
from trimtab.exchange import fields as shared
from trimtab.exchange.fields import KEY, Dump, Numbered
from trimtab.feedback.judgement import Item
from trimtab.feedback.records import Records, messages
from trimtab.types import Row

QUESTION, REASON = "preference", "reason"
PROMPTS = ("prompt", "instruction", "question", "input", "chat", "conversation", "text")
SPACE = uuid.UUID("6f0d5d0e-64f5-4c3e-9d0b-0d6b7a3c1a11")


def sniff(row: Row) -> bool:
    """Whether a row is a record."""
    return isinstance(row.get("fields"), dict) and "responses" in row


def user(name: str) -> str:
    """The UUID of an annotator; a name that is a UUID stays."""
    try:
        return str(uuid.UUID(name))
    except ValueError:
        return str(uuid.uuid5(SPACE, name))


def _value(ranks: tuple[int, ...], names: list[str]) -> Any:
    if len(ranks) == 2:
        return "tie" if ranks[0] == ranks[1] else names[0 if ranks[0] < ranks[1] else 1]
    order = sorted(range(len(ranks)), key=lambda k: ranks[k])
    return [{"value": names[k], "rank": ranks[k] + 1} for k in order]


def _ranks(value: Any, names: list[str]) -> list[int] | None:
    """Ranks [K] of a question's value; None if it does not rank these completions."""
    if isinstance(value, str) and len(names) == 2:
        if value.lower() in ("tie", "equal", "both", "same"):
            return [0, 0]
        return [0, 1] if value == names[0] else [1, 0] if value == names[1] else None
    if isinstance(value, list) and value:
        ranks = {
            str(cast(Row, v).get("value")): cast(Row, v).get("rank")
            for v in cast(list[Any], value)
            if isinstance(v, dict)
        }
        if set(ranks) == set(names) and all(isinstance(r, int) for r in ranks.values()):
            low = min(cast(int, r) for r in ranks.values())
            return [cast(int, ranks[n]) - low for n in names]
    return None


def dump(records: Records) -> Dump:
    """One record per item."""
    by_item = shared.numbered_by_item(records)
    return Dump([_record(item, by_item[item.id]) for item in records.items.values()], [])


def _record(item: Item, numbered: list[Numbered]) -> Row:
    original = item.extra.get("argilla")
    if isinstance(original, dict):
        row = {"id": item.id, **cast(Row, original)}
        if load(sources.Rows("", [(1, row)])).judgements == [j for _, j in numbered]:
            return row
    names = [f"response_{k + 1}" for k in range(len(item.completions))]
    responses: dict[str, list[Row]] = {}
    suggestions: dict[str, Row] = {}
    visible: list[Row] = []
    hidden: list[Row] = []
    users: set[str] = set()
    for number, j in numbered:
        who = user(j.annotator)
        if j.ranks is None or who in users or (j.who == "ai" and QUESTION in suggestions):
            # Argilla has one response per user and question, and one suggestion per question.
            hidden.append({"number": number, **shared.other_fields(j, ("item",))})
            continue
        users.add(who)
        value = _value(j.ranks, names)
        expressed = ["item", "annotator", "reason"]
        if _ranks(value, names) == list(j.ranks):
            expressed.append("ranks")
        if j.who == "ai":
            suggestions[QUESTION] = {"value": value, "score": j.prob, "agent": j.annotator}
            expressed += ["prob", "who"]
            if j.reason:
                suggestions[REASON] = {"value": j.reason, "score": None, "agent": j.annotator}
        else:
            responses.setdefault(QUESTION, []).append({"value": value, "user_id": who})
            if j.reason:
                responses.setdefault(REASON, []).append({"value": j.reason, "user_id": who})
        others = shared.other_fields(j, expressed)
        visible.append({"number": number, "annotator": j.annotator, **others})
    column = {"item": shared.other_item_fields(item, "id"), "shown": visible, "whole": hidden}
    completions = dict(zip(names, item.completions, strict=True))
    return {
        "id": item.id,
        "fields": {"prompt": shared.readable(item.prompt), **completions},
        "metadata": {KEY: shared.pack(column)},
        "suggestions": suggestions,
        "responses": responses,
        "vectors": {},
        "_server_id": None,
    }


def load(rows: sources.Rows) -> Records:
    """Records of our own or of others; verdicts on other questions are saved with the item."""
    records = Records()
    numbered: list[Numbered] = []
    for number, row in rows.rows:
        texts = cast(Row, row["fields"])
        column = shared.unpack(cast(Row, row.get("metadata") or {}))
        prompt, names = _columns(rows.name, number, texts)
        fields: Row = {
            "id": str(row.get("id")),
            "prompt": messages(texts[prompt]),
            "completions": [texts[n] for n in names],
            **column.get("item", {}),
        }
        if not column:
            fields["extra"] = {"argilla": {k: v for k, v in row.items() if k != "id"}}
        item = shared.item_of(rows, number, fields)
        records.add(item)
        numbered += _judgements(rows, number, row, item, names, column)
        numbered += shared.hidden_judgements(rows, number, item, column)
    records.judgements = shared.in_order(numbered)
    return records


def _columns(name: str, number: int, texts: Row) -> tuple[str, list[str]]:
    """The field of the prompt, and those of the completions."""
    columns = [k for k, v in texts.items() if isinstance(v, str)]
    prompt = next((p for p in PROMPTS if p in texts), None)
    names = [k for k in columns if k != prompt]
    if prompt is None and len(columns) >= 3:
        prompt, names = columns[0], columns[1:]
    if prompt is None or not names:
        raise DataError(
            f"{name}: row {number}: fields {', '.join(texts)}: need a prompt ({', '.join(PROMPTS)}) "
            "and completions"
        )
    return prompt, names


def _question(row: Row, names: list[str]) -> str | None:
    """The question whose values rank the completions; "preference" is preferred."""
    responses = cast("dict[str, list[Row]]", row.get("responses") or {})
    values = {q: [r.get("value") for r in rs] for q, rs in responses.items()}
    for q, s in cast("dict[str, Row]", row.get("suggestions") or {}).items():
        values.setdefault(q, []).append(s.get("value"))
    usable = [q for q, vs in values.items() if vs and all(_ranks(v, names) is not None for v in vs)]
    return min(usable, key=lambda q: q != QUESTION, default=None)


def _judgements(
    rows: sources.Rows, number: int, row: Row, item: Item, names: list[str], column: Row
) -> list[Numbered]:
    """The judgement of each response and of the suggestion."""
    question = _question(row, names)
    if question is None:
        return []
    saved = {user(s["annotator"]): s for s in column.get("shown", [])}
    result: list[Numbered] = []

    def add(key: str, fields: Row) -> None:
        others = dict(saved.get(key, {}))
        place = int(others.pop("number", -1))
        fields = {**fields, "annotator": key, **others, "item": item.id}
        result.append((place, shared.judgement_of(rows, number, fields)))

    responses = cast("dict[str, list[Row]]", row.get("responses") or {})
    suggestions = cast("dict[str, Row]", row.get("suggestions") or {})
    reasons = {r["user_id"]: r["value"] for r in responses.get(REASON, [])}
    for r in responses.get(question, []):
        who = str(r.get("user_id"))
        reason = {"reason": reasons[who]} if who in reasons else {}
        add(who, {"ranks": _ranks(r["value"], names), **reason})
    if question in suggestions:
        s = suggestions[question]
        agent = str(s.get("agent") or "suggestion")
        fields: Row = {"ranks": _ranks(s["value"], names), "who": "ai"}
        if isinstance(s.get("score"), (int, float)) and len(names) == 2 and column:
            fields["prob"] = s["score"]
        if REASON in suggestions and suggestions[REASON].get("agent") == s.get("agent"):
            fields["reason"] = suggestions[REASON]["value"]
        add(user(agent) if user(agent) in saved else agent, fields)
    return result
