"""Argilla 2 records, as ``dataset.records.to_json`` writes them and ``from_json`` reads them.

People's answers are responses, an AI judge's is the suggestion. A pair is a label question
"preference" with the values response_1, response_2 and tie; more answers are a ranking question.
Users are UUIDs there: a name is turned into the same UUID each time, and kept.
"""

from __future__ import annotations

import uuid
from typing import Any, cast

from trimtab.data import sources
from trimtab.errors import DataError
from trimtab.exchange import fields as rest
from trimtab.exchange.fields import KEY, Dumped, Row
from trimtab.feedback.judgement import Item, Judgement
from trimtab.feedback.records import Records

QUESTION, REASON = "preference", "reason"
PROMPTS = ("prompt", "instruction", "question", "input", "chat", "conversation", "text")
SPACE = uuid.UUID("6f0d5d0e-64f5-4c3e-9d0b-0d6b7a3c1a11")


def sniff(row: Row) -> bool:
    """Records."""
    return isinstance(row.get("fields"), dict) and "responses" in row


def user(name: str) -> str:
    """The UUID of an annotator; a name that is one stays."""
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
    """Ranks [K] of a question's value; None if it is no verdict on these answers."""
    if isinstance(value, str) and len(names) == 2:
        low = value.lower()
        if low in ("tie", "equal", "both", "same"):
            return [0, 0]
        return [0, 1] if value == names[0] else [1, 0] if value == names[1] else None
    if isinstance(value, list) and value:
        given = {
            str(cast(Row, v).get("value")): cast(Row, v).get("rank")
            for v in cast(list[Any], value)
            if isinstance(v, dict)
        }
        if set(given) == set(names) and all(isinstance(r, int) for r in given.values()):
            low = min(cast(int, r) for r in given.values())
            return [cast(int, given[n]) - low for n in names]
    return None


def dump(records: Records) -> Dumped:
    """A record an item."""
    by_item: dict[str, list[tuple[int, Judgement]]] = {i: [] for i in records.items}
    for number, j in enumerate(records.judgements):
        by_item[j.item].append((number, j))
    return [_record(item, by_item[item.id]) for item in records.items.values()], []


def _record(item: Item, mine: list[tuple[int, Judgement]]) -> Row:
    foreign = item.extra.get("argilla")
    if isinstance(foreign, dict):
        theirs = {"id": item.id, **cast(Row, foreign)}
        if load(sources.Rows("", [(1, theirs)])).judgements == [j for _, j in mine]:
            return theirs
    names = [f"response_{k + 1}" for k in range(len(item.completions))]
    responses: dict[str, list[Row]] = {}
    suggestions: dict[str, Row] = {}
    shown: list[Row] = []
    whole: list[Row] = []
    seen: set[str] = set()
    for number, j in mine:
        who = user(j.annotator)
        known: tuple[str, ...] = ("item", "annotator", "ranks", "reason")
        if j.ranks is None or who in seen or (j.who == "ai" and QUESTION in suggestions):
            # One answer a user and question, one suggestion a question: others travel whole.
            whole.append({"number": number, **rest.rest(j, ("item",))})
            continue
        seen.add(who)
        value = _value(j.ranks, names)
        if _ranks(value, names) != list(j.ranks):
            known = ("item", "annotator", "reason")
        if j.who == "ai":
            suggestions[QUESTION] = {"value": value, "score": j.prob, "agent": j.annotator}
            known = (*known, "prob", "who")
            if j.reason:
                suggestions[REASON] = {"value": j.reason, "score": None, "agent": j.annotator}
        else:
            responses.setdefault(QUESTION, []).append({"value": value, "user_id": who})
            if j.reason:
                responses.setdefault(REASON, []).append({"value": j.reason, "user_id": who})
        shown.append({"number": number, "annotator": j.annotator, **rest.rest(j, known)})
    text = rest.plain(item.prompt)
    hidden = {
        "item": rest.rest(item, ("id", "completions") if text is None else ("id", "completions", "prompt")),
        "shown": shown, "whole": whole,
    }  # fmt: skip
    return {
        "id": item.id,
        "fields": {
            "prompt": rest.readable(item.prompt), **dict(zip(names, item.completions, strict=True))
        },
        "metadata": {KEY: rest.packed(hidden)},
        "suggestions": suggestions, "responses": responses, "vectors": {}, "_server_id": None,
    }  # fmt: skip


def load(rows: sources.Rows) -> Records:
    """Records of our own or of others; other questions' answers are kept with the judgement."""
    found = Records()
    ordered: list[tuple[int, Judgement]] = []
    for number, row in rows.rows:
        fields = cast(Row, row["fields"])
        kept = rest.unpacked(cast(Row, row.get("metadata") or {}))
        prompt_name, names = _fields(rows.name, number, fields)
        asked = fields[prompt_name]
        prompt = rest.question(asked) if isinstance(asked, str) else asked
        given: Row = {
            "id": str(row.get("id")), "prompt": prompt, "completions": [fields[n] for n in names],
            **kept.get("item", {}),
        }  # fmt: skip
        questions = _questions(row, names)
        if not kept:
            others = {k: v for k, v in row.items() if k != "id"}
            given["extra"] = {"argilla": others}
        item = rest.item(rows.name, number, given)
        found.add(item)
        ordered += _judgements(rows.name, number, row, item, names, questions, kept)
    last = max((n for n, _ in ordered if n >= 0), default=-1)
    found.judgements = [
        j for _, j in sorted(ordered, key=lambda x: x[0] if x[0] >= 0 else last + 1)
    ]
    return found


def _fields(name: str, number: int, fields: Row) -> tuple[str, list[str]]:
    """Which field is the prompt, which are answers."""
    texts = [k for k, v in fields.items() if isinstance(v, str)]
    prompt = next((p for p in PROMPTS if p in fields), None)
    names = [k for k in texts if k != prompt]
    if prompt is None and len(texts) >= 3:
        prompt, names = texts[0], texts[1:]
    if prompt is None or not names:
        raise DataError(
            f"{name}: row {number}: fields {', '.join(fields)}: need a prompt ({', '.join(PROMPTS)}) "
            "and answers"
        )
    return prompt, names


def _questions(row: Row, names: list[str]) -> list[str]:
    """Questions whose values are verdicts on the answers, "preference" first."""
    given = cast("dict[str, list[Row]]", row.get("responses") or {})
    values = {q: [r.get("value") for r in rs] for q, rs in given.items()}
    for q, s in cast("dict[str, Row]", row.get("suggestions") or {}).items():
        values.setdefault(q, []).append(s.get("value"))
    usable = [q for q, vs in values.items() if vs and all(_ranks(v, names) is not None for v in vs)]
    return sorted(usable, key=lambda q: q != QUESTION)


def _judgements(
    name: str, number: int, row: Row, item: Item, names: list[str], questions: list[str], kept: Row
) -> list[tuple[int, Judgement]]:
    """(place in the file we wrote, or -1, judgement) of each user's answer and each suggestion."""
    shown = {user(s["annotator"]): s for s in kept.get("shown", [])}
    out: list[tuple[int, Judgement]] = []

    def add(key: str, fields: Row) -> None:
        mine = dict(shown.get(key, {}))
        place = int(mine.pop("number", -1))
        annotator = mine.pop("annotator", key)
        out.append(
            (place, rest.judgement(name, number, {**fields, **mine, "annotator": annotator, "item": item.id}))
        )  # fmt: skip

    responses = cast("dict[str, list[Row]]", row.get("responses") or {})
    suggestions = cast("dict[str, Row]", row.get("suggestions") or {})
    if questions:
        main = questions[0]
        reasons = {r["user_id"]: r["value"] for r in responses.get(REASON, [])}
        for r in responses.get(main, []):
            who = str(r.get("user_id"))
            reason = {"reason": reasons[who]} if who in reasons else {}
            add(who, {"ranks": _ranks(r["value"], names), **reason})
        if main in suggestions:
            s = suggestions[main]
            agent = str(s.get("agent") or "suggestion")
            key = user(agent) if user(agent) in shown else agent
            said: Row = {"ranks": _ranks(s["value"], names), "who": "ai"}
            if isinstance(s.get("score"), (int, float)) and len(names) == 2 and kept:
                said["prob"] = s["score"]
            if REASON in suggestions and suggestions[REASON].get("agent") == s.get("agent"):
                said["reason"] = suggestions[REASON]["value"]
            add(key, said)
    for whole in kept.get("whole", []):
        fields = {k: v for k, v in whole.items() if k != "number"}
        out.append((whole["number"], rest.judgement(name, number, {**fields, "item": item.id})))
    return out
