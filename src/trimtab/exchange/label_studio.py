"""Label Studio tasks with annotations (https://labelstud.io/guide/task_format), as exported JSON.

A pair is a ``Pairwise`` result (left is the item's first completion), a tie the choice "tie", a
ranking of more completions a ``Ranker`` result, a reason a text area. People's judgements are
annotations with time and duration (``lead_time``); skipped ones are ``was_cancelled``, gold ones
``ground_truth``. AI judges are predictions. ``interface`` is a labelling interface for these.

Label Studio refuses annotations by people who are not its users, and exports its users by number and
predictions by id. Names and the verdicts of judges are therefore saved in the task's data too. An
annotation is matched with them by its ``id``, which Label Studio exports as ``import_id``.
"""

from __future__ import annotations

import itertools
import logging
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

log = logging.getLogger(__name__)
PAIR = """  <Pairwise name="preference" toName="answer_1,answer_2"/>
  <Text name="answer_1" value="$answer_1"/>
  <Text name="answer_2" value="$answer_2"/>
"""
RANKING = """  <List name="answers" value="$answers" title="Best first"/>
  <Ranker name="ranking" toName="answers"/>
"""
INTERFACE = """<View>
  <Text name="prompt" value="$prompt"/>
{}  <Choices name="tie" toName="prompt"><Choice value="tie"/></Choices>
  <TextArea name="reason" toName="prompt"/>
</View>
"""
PROMPTS = ("prompt", "instruction", "question", "input", "conversation")
READ = frozenset(
    (
        "completed_by",
        "result",
        "was_cancelled",
        "ground_truth",
        "created_at",
        "lead_time",
        "model_version",
        "score",
    )
)
"""Fields of annotations and predictions that judgements have a place for."""
VERDICT = ("ranks", "reason", "status")
SIDE = re.compile(r"^(.*?)[_ -]?(1|2|a|b|left|right)$", re.I)


def sniff(row: Row) -> bool:
    """Whether a row is a task."""
    return isinstance(row.get("data"), dict) and ("annotations" in row or "predictions" in row)


def is_flat_export(row: Row) -> bool:
    """Whether a row comes from the export formats JSON_MIN and CSV."""
    return "annotation_id" in row and "annotator" in row and "data" not in row


def _part(name: str, to: str, kind: str, **value: Any) -> Row:
    return {"from_name": name, "to_name": to, "type": kind, "value": value}


def ranks_more_than_two(records: Records) -> bool:
    """Whether all items are written for a ``Ranker``: a project has one interface for all tasks."""
    return any(len(item.completions) != 2 for item in records.items.values())


def interface(records: Records) -> str:
    """The labelling interface of a project for the tasks that ``dump`` writes."""
    return INTERFACE.format(RANKING if ranks_more_than_two(records) else PAIR)


def _result(j: Judgement, ranking: bool) -> list[Row]:
    parts: list[Row] = []
    ranks = j.ranks or ()
    if len(ranks) > 1 and len(set(ranks)) == 1:
        parts.append(_part("tie", "prompt", "choices", choices=["tie"]))
    elif ranking and ranks:
        order = sorted(range(len(ranks)), key=lambda k: ranks[k])
        names = [f"answer_{k + 1}" for k in order]
        parts.append(_part("ranking", "answers", "ranker", ranker={"ranking": names}))
    elif ranks:
        # The page shows the result with either completion as its object, but not with both.
        side = "left" if ranks[0] < ranks[-1] else "right"
        parts.append(_part("preference", "answer_1", "pairwise", selected=side))
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
            buckets = list(cast("dict[str, list[Any]]", value.get("ranker") or {}).values())
            order = [str(x) for x in buckets[0]] if len(buckets) == 1 else []
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
    ranking = ranks_more_than_two(records)
    return Dump([_task(number, item, by_item[item.id], ranking) for number, item in items], [])


def _task(task: int, item: Item, numbered: list[Numbered], ranking: bool) -> Row:
    annotations: list[Row] = []
    predictions: list[Row] = []
    visible: list[Row] = []
    hidden: list[Row] = []
    originals = {number: cast(Row, j.detail.get("label_studio", {})) for number, j in numbered}
    used = {o.get("id") for o in originals.values()}
    free = (n for n in itertools.count(1) if n not in used)
    for number, j in numbered:
        if j.status == "error":
            hidden.append({"number": number, **shared.other_fields(j, ("item",))})
            continue
        result, original = _result(j, ranking), originals[number]
        entry: Row = {"number": number, "by": j.annotator}
        if j.who == "ai" and j.status == "ok":
            entry["machine"] = True  # one name may belong to a person and a judge
            prediction = {"model_version": j.annotator, "score": j.prob, "result": result}
            predictions.append({**prediction, **original})
        else:
            annotation = {
                "id": original.get("id") or next(free),
                "result": result,
                "was_cancelled": j.status == "skip",
                "ground_truth": j.who == "gold",
                "created_at": j.at,
                "lead_time": j.seconds,
            }
            entry["id"] = annotation["id"]
            annotations.append({**annotation, **original})
        visible.append({**entry, **shared.other_fields(j, ("item", "annotator"))})
    texts = {f"answer_{k + 1}": text for k, text in enumerate(item.completions)}
    answers = [{"id": name, "body": text} for name, text in texts.items()]
    completions = {"answers": answers} if ranking else texts
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
    answers: Any = data.get("answers")
    if isinstance(answers, list):  # of a List
        bodies = cast("list[Row]", answers)
        texts |= {f"answer_{n}": str(a.get("body", "")) for n, a in enumerate(bodies, 1)}
        numbered = [(n, f"answer_{n}") for n in range(1, len(bodies) + 1)]
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
    count = len(item.completions)
    saved = _Saved(column.get("said", []))
    result: list[Numbered] = []

    def add(source: Row, who: str, machine: bool) -> None:
        entry = saved.take(source, who, machine)
        fields = _fields(source, machine, bool(entry.pop("scored", False)), count)
        place = int(entry.pop("number", -1))
        if place < 0:
            detail = _foreign_detail(source, fields, machine, count)
            fields["detail"] = {"label_studio": detail}
        annotator = entry.pop("by", who)
        fields = {**_restored(fields, entry, count), "annotator": annotator, "item": item.id}
        result.append((place, shared.judgement_of(rows, number, fields)))

    for annotation in cast("list[Row]", row.get("annotations") or []):
        add(annotation, _person(annotation), False)
    for prediction in cast("list[Any]", row.get("predictions") or []):
        if isinstance(prediction, dict):
            source = cast(Row, prediction)
            add(source, str(source.get("model_version") or "prediction"), True)
        elif entry := saved.next_machine():
            # Exports hold predictions as ids; their verdicts are saved in the task.
            fields = {k: v for k, v in entry.items() if k not in ("number", "by")}
            fields |= {"annotator": entry["by"], "item": item.id}
            result.append((int(entry["number"]), shared.judgement_of(rows, number, fields)))
        else:
            log.warning(
                "%s: row %d: prediction %s is an id without its verdict, and is not read; export "
                "predictions as objects",
                rows.name,
                number,
                prediction,
            )
    return result


class _Saved:
    """What ``dump`` saved of the judgements of one task."""

    def __init__(self, entries: list[Row]) -> None:
        self.by_id = {e["id"]: dict(e) for e in entries if "id" in e}
        self.machine: list[Row] = []
        self.by_name: dict[tuple[str, bool], list[Row]] = defaultdict(list)
        for e in entries:
            if "id" not in e:
                machine = bool(e.get("machine"))
                entry = {k: v for k, v in e.items() if k != "machine"}
                self.by_name[str(e["by"]), machine].append(entry)
                if machine:
                    self.machine.append(entry)

    def take(self, source: Row, who: str, machine: bool) -> Row:
        """The entry of an annotation or a prediction; empty if it is not ours."""
        if not machine:
            # In an export, "id" is Label Studio's own.
            entry = self.by_id.pop(source.get("import_id", source.get("id")), None)
            if entry is not None:
                return entry
        named = self.by_name[who, machine]
        return dict(named.pop(0)) if named else {}

    def next_machine(self) -> Row | None:
        """The next judge's entry."""
        return self.machine.pop(0) if self.machine else None


def _restored(fields: Row, entry: Row, count: int) -> Row:
    """Fields of a judgement: as saved, unless its verdict was edited in the other tool.

    Args:
        fields: What the annotation or prediction says.
        entry: What was saved of it.
        count: Completions of the item.
    """
    verdict = {k: fields.get(k) for k in VERDICT}
    saved = {k: entry[k] for k in VERDICT if k in entry}
    own = "id" in entry
    entry = {k: v for k, v in entry.items() if k != "id"}
    if "ranks" in saved or "status" in saved:  # earlier releases saved only what is not shown
        result = _result(Judgement(item="", annotator="", **saved), count != 2)
        cancelled = saved.get("status") == "skip"
        written = _fields({"result": result, "was_cancelled": cancelled}, False, False, count)
        if verdict == {k: written.get(k) for k in VERDICT}:
            # Label Studio replaces the time by that of the import.
            return {**fields, **({"at": None} if own else {}), **entry}
    others = {k: v for k, v in entry.items() if k not in (*VERDICT, "prob", "strength")}
    return {**others, **fields, "at": entry.get("at", fields.get("at"))}


def _fields(source: Row, machine: bool, scored: bool, count: int) -> Row:
    """What an annotation or a prediction says itself."""
    fields = _verdict(source.get("result"), count)
    if source.get("was_cancelled") or "ranks" not in fields:
        fields["status"] = "skip"
    if source.get("was_cancelled"):
        fields.pop("ranks", None)
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


def _foreign_detail(source: Row, fields: Row, machine: bool, count: int) -> Row:
    """The fields of another tool's annotation that writing it again would not reproduce."""
    detail = {k: v for k, v in source.items() if k not in READ}
    verdict = {k: v for k, v in fields.items() if k in ("ranks", "reason", "status")}
    written = _result(Judgement(item="", annotator="", **verdict), count != 2)
    if written != source.get("result"):
        detail["result"] = source.get("result")
    if machine:
        detail["score"] = source.get("score")
    elif "completed_by" in source:
        detail["completed_by"] = source["completed_by"]
    return detail
