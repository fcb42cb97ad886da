"""Label Studio tasks with annotations (https://labelstud.io/guide/task_format), as exported JSON.

A pair is a ``Pairwise`` result (left is the item's first completion), a tie the choice "tie", a
ranking of more completions a ``Ranker`` result, a reason a text area. People's judgements are
annotations with person, time and duration (``lead_time``); skipped ones are ``was_cancelled``, gold
ones ``ground_truth``. AI judges are predictions. ``CONFIG`` is a labelling interface for these.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, cast

from trimtab.data import sources
from trimtab.errors import DataError
from trimtab.exchange import fields as shared
from trimtab.exchange.fields import KEY, Dump, Numbered
from trimtab.feedback.judgement import Item, Judgement
from trimtab.feedback.records import Records, messages
from trimtab.types import Row

CONFIG = """<View>
  <Text name="prompt" value="$prompt"/>
  <Pairwise name="preference" toName="answer_1,answer_2"/>
  <Text name="answer_1" value="$answer_1"/>
  <Text name="answer_2" value="$answer_2"/>
  <Choices name="tie" toName="prompt"><Choice value="tie"/></Choices>
  <TextArea name="reason" toName="prompt"/>
</View>
"""
PROMPTS = ("prompt", "instruction", "question", "input", "conversation")
READ = frozenset(
    ("completed_by", "result", "was_cancelled", "ground_truth", "created_at", "lead_time",
     "model_version", "score")
)  # fmt: skip
"""Fields of annotations and predictions that judgements have a place for."""
SIDE = re.compile(r"^(.*?)[_ -]?(1|2|a|b|left|right)$", re.I)


def sniff(row: Row) -> bool:
    """Whether a row is a task."""
    return isinstance(row.get("data"), dict) and ("annotations" in row or "predictions" in row)


def _part(name: str, to: str, kind: str, **value: Any) -> Row:
    return {"from_name": name, "to_name": to, "type": kind, "value": value}


def _result(j: Judgement) -> list[Row]:
    parts: list[Row] = []
    if j.ranks is not None and len(j.ranks) == 2:
        if j.ranks[0] == j.ranks[1]:
            parts.append(_part("tie", "prompt", "choices", choices=["tie"]))
        else:
            side = "left" if j.ranks[0] < j.ranks[1] else "right"
            parts.append(_part("preference", "answer_1,answer_2", "pairwise", selected=side))
    elif j.ranks is not None:
        order = sorted(range(len(j.ranks)), key=lambda k: (j.ranks or ())[k])
        rank = [f"answer_{k + 1}" for k in order]
        parts.append(_part("preference", "answers", "ranker", ranker={"rank": rank}))
    if j.reason:
        parts.append(_part("reason", "prompt", "textarea", text=[j.reason]))
    return parts


def _verdict(result: Any, count: int) -> Row:
    """Ranks and reason of a result."""
    fields: Row = {}
    for part in cast("list[Row]", result if isinstance(result, list) else []):
        value = cast(Row, part.get("value") or {})
        kind = part.get("type")
        if kind == "pairwise" and value.get("selected") in ("left", "right"):
            fields["ranks"] = [0, 1] if value["selected"] == "left" else [1, 0]
        elif kind == "choices" and [str(c).lower() for c in value.get("choices", [])] == ["tie"]:
            fields.setdefault("ranks", [0] * count)
        elif kind == "ranker":
            ranker = cast(Row, value.get("ranker") or {})
            order = [str(x) for x in cast(list[Any], ranker.get("rank") or [])]
            places = [int(m.group(1)) - 1 for x in order if (m := re.search(r"(\d+)$", x))]
            if sorted(places) == list(range(count)):
                fields["ranks"] = [places.index(k) for k in range(count)]
        elif kind == "textarea" and value.get("text"):
            fields["reason"] = "\n".join(str(t) for t in cast(list[Any], value["text"]))
    return fields


def dump(records: Records) -> Dump:
    """One task per item."""
    by_item = shared.numbered_by_item(records)
    items = enumerate(records.items.values(), 1)
    return Dump([_task(number, item, by_item[item.id]) for number, item in items], [])


def _task(task: int, item: Item, numbered: list[Numbered]) -> Row:
    annotations: list[Row] = []
    predictions: list[Row] = []
    visible: list[Row] = []
    hidden: list[Row] = []
    for number, j in numbered:
        if j.status == "error":
            hidden.append({"number": number, **shared.other_fields(j, ("item",))})
            continue
        result = _result(j)
        expressed = ["item", "annotator", "reason", "status"]
        if _verdict(result, len(item.completions)).get("ranks") == (
            list(j.ranks) if j.ranks else None
        ):
            expressed.append("ranks")
        original = j.detail.get("label_studio", {})
        flags: Row = {}
        if j.who == "ai" and j.status == "ok":
            flags["machine"] = True  # one name may belong to a person and a judge
            expressed.append("who")
            if j.prob is not None:
                flags["scored"] = True
                expressed.append("prob")
            prediction = {"model_version": j.annotator, "score": j.prob, "result": result}
            predictions.append({**prediction, **original})
        else:
            expressed += ["at", "seconds", *(["who"] if j.who == "gold" else [])]
            annotation = {
                "completed_by": {"email": j.annotator},
                "result": result,
                "was_cancelled": j.status == "skip",
                "ground_truth": j.who == "gold",
                "created_at": j.at,
                "lead_time": j.seconds,
            }
            annotations.append({**annotation, **original})
        others = shared.other_fields(j, expressed)
        visible.append({"number": number, "by": j.annotator, **flags, **others})
    completions = {f"answer_{k + 1}": text for k, text in enumerate(item.completions)}
    column = {"item": shared.other_item_fields(item), "said": visible, "whole": hidden}
    foreign = cast(Row, item.extra.get("label_studio") or {})
    data = foreign.get("data") or {"prompt": shared.readable(item.prompt), **completions}
    return {
        "id": task,
        **{k: v for k, v in foreign.items() if k != "data"},
        "data": {**data, KEY: shared.pack(column)},
        "annotations": annotations,
        "predictions": predictions,
    }


def load(rows: sources.Rows) -> Records:
    """Tasks of our own or of others; unknown fields are saved, and written back."""
    records = Records()
    numbered: list[Numbered] = []
    for number, row in rows.rows:
        data = cast(Row, row["data"])
        column = shared.unpack(data)
        prompt, completions = _texts(rows.name, number, data)
        fields: Row = {"prompt": messages(prompt), "completions": completions}
        if not column:
            others = {k: v for k, v in row.items() if k not in ("annotations", "predictions")}
            fields["extra"] = {"label_studio": others}
        item = shared.item_of(rows, number, {**fields, **column.get("item", {})})
        records.add(item)
        numbered += _judgements(rows, number, row, item, column)
        numbered += shared.hidden_judgements(rows, number, item, column)
    records.judgements = shared.in_order(numbered)
    return records


def _texts(name: str, number: int, data: Row) -> tuple[str, list[str]]:
    """Prompt and completions of a task's data."""
    texts = {k: v for k, v in data.items() if isinstance(v, str) and k != KEY}
    numbered = sorted(
        (int(m.group(1)), k) for k in texts if (m := re.fullmatch(r"answer_(\d+)", k))
    )
    sides = [k for _, k in numbered] or sorted(k for k in texts if SIDE.match(k))
    prompt = next((p for p in PROMPTS if p in texts), None) or next(
        (k for k in texts if k not in sides), None
    )
    if len(sides) < 2 or prompt is None:
        raise DataError(
            f"{name}: row {number}: data has {', '.join(data)}: need a prompt and two completions "
            "(answer_1 and answer_2, text1 and text2, …)"
        )
    return texts[prompt], [texts[k] for k in sides]


def _person(annotation: Row) -> str:
    by: Any = annotation.get("completed_by")
    if isinstance(by, Mapping):
        person = cast("Mapping[str, Any]", by)
        return str(person.get("email") or person.get("username") or person.get("id"))
    return str(by)


def _judgements(
    rows: sources.Rows, number: int, row: Row, item: Item, column: Row
) -> list[Numbered]:
    """The judgement of each annotation and prediction."""
    saved: dict[tuple[str, bool], list[Row]] = defaultdict(list)
    for s in column.get("said", []):
        by = (str(s["by"]), bool(s.get("machine")))
        saved[by].append({k: v for k, v in s.items() if k not in ("by", "machine")})
    given_by: list[tuple[str, bool, Row]] = []
    for annotation in cast("list[Row]", row.get("annotations") or []):
        given_by.append((_person(annotation), False, annotation))
    for prediction in cast("list[Row]", row.get("predictions") or []):
        given_by.append((str(prediction.get("model_version") or "prediction"), True, prediction))
    result: list[Numbered] = []
    for who, machine, source in given_by:
        others = saved[who, machine].pop(0) if saved[who, machine] else {}
        place = int(others.pop("number", -1))
        scored = bool(others.pop("scored", False))
        fields = _fields(source, machine, scored, len(item.completions))
        if source.get("was_cancelled") or ("ranks" not in fields and "ranks" not in others):
            fields["status"] = "skip"
        if source.get("was_cancelled"):
            fields.pop("ranks", None)
        if place < 0:
            detail = _foreign_detail(source, fields, who, machine, len(item.completions))
            fields["detail"] = {"label_studio": detail}
        fields = {**fields, **others, "annotator": who, "item": item.id}
        result.append((place, shared.judgement_of(rows, number, fields)))
    return result


def _fields(source: Row, machine: bool, scored: bool, count: int) -> Row:
    """What an annotation or a prediction says itself."""
    fields = _verdict(source.get("result"), count)
    if not machine:
        who = "gold" if source.get("ground_truth") else "human"
        return {
            **fields,
            "at": source.get("created_at"),
            "seconds": source.get("lead_time"),
            "who": who,
        }
    # In other tools' files, a score may be the confidence in the choice, or anything else.
    score = source.get("score")
    prob = {"prob": score} if scored and isinstance(score, (int, float)) else {}
    return {**fields, "who": "ai", **prob}


def _foreign_detail(source: Row, fields: Row, who: str, machine: bool, count: int) -> Row:
    """The fields of another tool's annotation that writing it again would not reproduce."""
    detail = {k: v for k, v in source.items() if k not in READ}
    verdict = {k: v for k, v in fields.items() if k in ("ranks", "reason", "status")}
    if _result(Judgement(item="", annotator="", **verdict)) != source.get("result"):
        detail["result"] = source.get("result")
    if machine:
        detail["score"] = source.get("score")
    elif source.get("completed_by") != {"email": who}:
        detail["completed_by"] = source.get("completed_by")
    return detail
