"""Label Studio tasks with annotations (https://labelstud.io/guide/task_format), as exported JSON.

A pair is a ``Pairwise`` result (left is the item's first answer), a tie the choice "tie", a ranking
of more a ``Ranker`` result, a reason a text area. People are annotations with who, when and how
long (``lead_time``), skipped ones ``was_cancelled``, gold ones ``ground_truth``; AI judges are
predictions. ``CONFIG`` is a labelling interface that asks for these.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

from trimtab.data import sources
from trimtab.errors import DataError
from trimtab.exchange import fields as rest
from trimtab.exchange.fields import KEY, Dumped, Row
from trimtab.feedback.judgement import Item, Judgement
from trimtab.feedback.records import Records

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
SIDE = re.compile(r"^(.*?)[_ -]?(1|2|a|b|left|right)$", re.I)


def sniff(row: Row) -> bool:
    """Tasks."""
    return isinstance(row.get("data"), dict) and ("annotations" in row or "predictions" in row)


def _result(j: Judgement) -> list[Row]:
    out: list[Row] = []
    if j.ranks is not None and len(j.ranks) == 2:
        if j.ranks[0] == j.ranks[1]:
            out.append({"from_name": "tie", "to_name": "prompt", "type": "choices",
                        "value": {"choices": ["tie"]}})  # fmt: skip
        else:
            side = "left" if j.ranks[0] < j.ranks[1] else "right"
            out.append({"from_name": "preference", "to_name": "answer_1,answer_2",
                        "type": "pairwise", "value": {"selected": side}})  # fmt: skip
    elif j.ranks is not None:
        order = sorted(range(len(j.ranks)), key=lambda k: (j.ranks or ())[k])
        out.append({"from_name": "preference", "to_name": "answers", "type": "ranker",
                    "value": {"ranker": {"rank": [f"answer_{k + 1}" for k in order]}}})  # fmt: skip
    if j.reason:
        out.append({"from_name": "reason", "to_name": "prompt", "type": "textarea",
                    "value": {"text": [j.reason]}})  # fmt: skip
    return out


def _said(result: Any, count: int) -> Row:
    """Ranks and reason of a result."""
    out: Row = {}
    for r in cast(list[Any], result if isinstance(result, list) else []):
        part = cast(Row, r)
        value = cast(Row, part.get("value") or {})
        kind = part.get("type")
        if kind == "pairwise" and value.get("selected") in ("left", "right"):
            out["ranks"] = [0, 1] if value["selected"] == "left" else [1, 0]
        elif kind == "choices" and [str(c).lower() for c in value.get("choices", [])] == ["tie"]:
            out.setdefault("ranks", [0] * count)
        elif kind == "ranker":
            ranker = cast(Row, value.get("ranker") or {})
            order = [str(x) for x in cast(list[Any], ranker.get("rank") or [])]
            places = [int(m.group(1)) - 1 for x in order if (m := re.search(r"(\d+)$", x))]
            if sorted(places) == list(range(count)):
                out["ranks"] = [places.index(k) for k in range(count)]
        elif kind == "textarea" and value.get("text"):
            out["reason"] = "\n".join(str(t) for t in cast(list[Any], value["text"]))
    return out


def dump(records: Records) -> Dumped:
    """A task an item."""
    by_item: dict[str, list[tuple[int, Judgement]]] = {i: [] for i in records.items}
    for number, j in enumerate(records.judgements):
        by_item[j.item].append((number, j))
    return [
        _task(place, item, by_item[item.id]) for place, item in enumerate(records.items.values(), 1)
    ], []


def _task(place: int, item: Item, mine: list[tuple[int, Judgement]]) -> Row:
    annotations: list[Row] = []
    predictions: list[Row] = []
    hidden: list[Row] = []
    whole: list[Row] = []
    for number, j in mine:
        if j.status == "error":
            whole.append({"number": number, **rest.rest(j, ("item",))})
            continue
        result = _result(j)
        known = ["item", "annotator", "reason", "status"]
        if _said(result, len(item.completions)).get("ranks") == (
            list(j.ranks) if j.ranks else None
        ):
            known.append("ranks")
        theirs = j.detail.get("label_studio", {})
        if j.who == "ai" and j.status == "ok":
            known += ["who", *(["prob"] if j.prob is not None else [])]
            predictions.append(
                {"model_version": j.annotator, "score": j.prob, "result": result, **theirs}
            )
        else:
            known += ["at", "seconds"] + (["who"] if j.who == "gold" else [])
            annotations.append(
                {
                    "completed_by": {"email": j.annotator}, "result": result,
                    "was_cancelled": j.status == "skip", "ground_truth": j.who == "gold",
                    "created_at": j.at, "lead_time": j.seconds, **theirs,
                }
            )  # fmt: skip
        kept = rest.rest(j, known)
        scored = {"scored": True} if "prob" in known else {}
        # One name may stand for a person and a judge.
        scored |= {"machine": True} if j.who == "ai" and j.status == "ok" else {}
        hidden.append({"number": number, "by": j.annotator, **scored, **kept})
    text = rest.plain(item.prompt)
    answers = {f"answer_{k + 1}": a for k, a in enumerate(item.completions)}
    column = {
        "item": rest.rest(item, ("completions",) if text is None else ("completions", "prompt")),
        "said": hidden, "whole": whole,
    }  # fmt: skip
    foreign = cast(Row, item.extra.get("label_studio") or {})
    data = foreign.get("data") or {"prompt": rest.readable(item.prompt), **answers}
    return {
        "id": place, **{k: v for k, v in foreign.items() if k != "data"},
        "data": {**data, KEY: rest.packed(column)},
        "annotations": annotations, "predictions": predictions,
    }  # fmt: skip


def load(rows: sources.Rows) -> Records:
    """Tasks of our own or of others; what is not understood is kept, and written back."""
    found = Records()
    ordered: list[tuple[int, Judgement]] = []
    for number, row in rows.rows:
        data = cast(Row, row["data"])
        kept = rest.unpacked(data)
        prompt, answers = _texts(rows.name, number, data)
        given: Row = {
            "prompt": rest.question(prompt),
            "completions": answers,
            **kept.get("item", {}),
        }
        if not kept:
            theirs = {k: v for k, v in row.items() if k not in ("annotations", "predictions")}
            given["extra"] = {"label_studio": theirs}
        item = rest.item(rows.name, number, given)
        found.add(item)
        ordered += _task_judgements(rows.name, number, row, item, kept)
    last = max((n for n, _ in ordered if n >= 0), default=-1)
    found.judgements = [
        j for _, j in sorted(ordered, key=lambda x: x[0] if x[0] >= 0 else last + 1)
    ]
    return found


def _texts(name: str, number: int, data: Row) -> tuple[str, list[str]]:
    """Prompt and answers of a task's data."""
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
            f"{name}: row {number}: data has {', '.join(data)}: need a prompt and two answers "
            "(answer_1 and answer_2, text1 and text2, …)"
        )
    return texts[prompt], [texts[k] for k in sides]


def _who(annotation: Row) -> str:
    by: Any = annotation.get("completed_by")
    if isinstance(by, Mapping):
        person = cast("Mapping[str, Any]", by)
        return str(person.get("email") or person.get("username") or person.get("id"))
    return str(by)


def _task_judgements(
    name: str, number: int, row: Row, item: Item, kept: Row
) -> list[tuple[int, Judgement]]:
    """(place in the file we wrote, or -1, judgement) of each annotation and prediction."""
    hidden: dict[tuple[tuple[str, bool], int], Row] = {}
    order: Counter[tuple[str, bool]] = Counter()
    for s in kept.get("said", []):
        by = (str(s["by"]), bool(s.get("machine")))
        hidden[by, order[by]] = {k: v for k, v in s.items() if k not in ("by", "machine")}
        order[by] += 1
    met: Counter[tuple[str, bool]] = Counter()
    out: list[tuple[int, Judgement]] = []
    spoken = [(_who(a), a, False) for a in cast(list[Row], row.get("annotations") or [])]
    spoken += [
        (str(p.get("model_version") or "prediction"), p, True)
        for p in cast(list[Row], row.get("predictions") or [])
    ]
    for who, given, machine in spoken:
        mine = dict(hidden.get(((who, machine), met[who, machine]), {}))
        met[who, machine] += 1
        place = int(mine.pop("number", -1))
        fields = _said(given.get("result"), len(item.completions))
        known = {"completed_by", "result", "was_cancelled", "ground_truth", "created_at",
                 "lead_time", "model_version", "score"}  # fmt: skip
        if machine:
            fields["who"] = "ai"
            score = given.get("score")
            # A score of others is confidence in what they chose, or anything else.
            if mine.pop("scored", False) and isinstance(score, (int, float)):
                fields["prob"] = score
        else:
            fields |= {
                "at": given.get("created_at"), "seconds": given.get("lead_time"),
                "who": "gold" if given.get("ground_truth") else "human",
            }  # fmt: skip
        if given.get("was_cancelled"):
            fields["status"] = "skip"
            fields.pop("ranks", None)
        elif "ranks" not in fields and "ranks" not in mine:
            fields["status"] = "skip"
        if place < 0:
            theirs = {k: v for k, v in given.items() if k not in known}
            if not _reads(fields, given, len(item.completions)):
                theirs["result"] = given.get("result")
            if not machine and not isinstance(given.get("completed_by"), Mapping):
                theirs["completed_by"] = given.get("completed_by")
            elif not machine and given["completed_by"] != {"email": who}:
                theirs["completed_by"] = given["completed_by"]
            if machine and "prob" not in fields:
                theirs["score"] = given.get("score")
            fields["detail"] = {"label_studio": theirs}
        made = {**fields, **mine, "annotator": who, "item": item.id}
        out.append((place, rest.judgement(name, number, made)))
    for whole in kept.get("whole", []):
        fields = {k: v for k, v in whole.items() if k != "number"}
        out.append((whole["number"], rest.judgement(name, number, {**fields, "item": item.id})))
    return out


def _reads(fields: Row, given: Row, count: int) -> bool:
    """Whether writing the verdict would give this very result."""
    j = Judgement.model_validate(
        {"item": "", "annotator": "", **{k: v for k, v in fields.items() if k in ("ranks", "reason", "status")}}
    )  # fmt: skip
    return _result(j) == given.get("result")
