"""AlpacaEval's annotations (https://github.com/tatsu-lab/alpaca_eval) and model outputs.

``preference`` is 1 if output_1 is better, 2 if output_2 is, 1.5 (in old files 0) for a tie, between
1 and 2 for a probability, and null where the annotator failed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from trimtab.data import sources
from trimtab.exchange import fields as shared
from trimtab.exchange.fields import KEY, Dump
from trimtab.feedback.judgement import Item, Judgement
from trimtab.feedback.records import Records, messages
from trimtab.types import Row

TEXTS = ("instruction", "output_1", "output_2")
COLUMNS = (*TEXTS, "generator_1", "generator_2", "annotator", "preference")


def sniff(row: Row) -> bool:
    """Whether a row is an annotation."""
    return {*TEXTS, "preference"} <= row.keys()


def sniff_outputs(row: Row) -> bool:
    """Whether a row is the output of a model."""
    return {"instruction", "output"} <= row.keys()


def _verdict(preference: Any) -> Row:
    """Fields of a judgement."""
    if not isinstance(preference, (int, float)) or math.isnan(preference):
        return {"status": "error"}
    p = 2.0 - float(preference) if preference else 0.5
    ranks = [0, 0] if p == 0.5 else [0, 1] if p > 0.5 else [1, 0]
    return {"ranks": ranks} if p in (0.0, 0.5, 1.0) else {"ranks": ranks, "prob": p}


def _preference(ranks: Sequence[int] | None, prob: float | None) -> float | None:
    if ranks is None:
        return None
    if prob is not None and 0.0 < prob < 1.0 and prob != 0.5:
        return 2.0 - prob
    return 1.5 if ranks[0] == ranks[1] else 1.0 if ranks[0] < ranks[1] else 2.0


def load(rows: sources.Rows) -> Records:
    """Annotations; other columns are saved with the judgement."""
    records = Records()
    for number, row in rows.rows:
        column = shared.unpack(row)
        prompt, *completions = (shared.text_of(rows, number, row, c) for c in TEXTS)
        models = (row.get("generator_1"), row.get("generator_2"))
        fields: Row = {"prompt": messages(prompt), "completions": completions}
        if any(m is not None for m in models):
            fields["models"] = models
        item = shared.item_of(rows, number, {**fields, **column.get("item", {})})
        records.add(item)
        verdict = _verdict(row["preference"])
        if not column:
            others = {k: v for k, v in row.items() if k not in (*COLUMNS, KEY)}
            if _preference(verdict.get("ranks"), verdict.get("prob")) != row["preference"]:
                others["preference"] = row["preference"]  # such as a tie in an old file
            detail = {"detail": {"alpaca_eval": others}} if others else {}
            verdict = {"who": "ai", **verdict, **detail}
        fields = {**verdict, **column.get("judgement", {}), "item": item.id}
        name = row.get("annotator")
        default = fields.get("annotator", "alpaca_eval")
        fields["annotator"] = name if isinstance(name, str) else default
        records.judgements.append(shared.judgement_of(rows, number, fields))
    return records


def dump(records: Records) -> Dump:
    """One row per judgement of a pair."""
    pairs = [j for j in records.judgements if len(records.items[j.item].completions) == 2]
    omitted = len(records.judgements) - len(pairs)
    notes = [f"{omitted} judgements are not of two completions"] if omitted else []
    return Dump([_row(records.items[j.item], j) for j in pairs], notes)


def _row(item: Item, j: Judgement) -> Row:
    models = item.models or (None, None)
    preference = _preference(j.ranks, j.prob)
    row: Row = {
        "instruction": shared.readable(item.prompt),
        "output_1": item.completions[0],
        "generator_1": models[0],
        "output_2": item.completions[1],
        "generator_2": models[1],
        "annotator": j.annotator,
        "preference": preference,
    }
    original = {**row, **j.detail.get("alpaca_eval", {})}
    back = load(sources.Rows("", [(1, original)]))
    if back.items.get(item.id) == item and back.judgements == [j]:
        return original
    verdict = {k: v for k, v in shared.other_fields(j).items() if k in ("ranks", "prob")}
    expressed = ("ranks", "prob") if verdict == _verdict(preference) else ()
    others = shared.other_fields(j, ("annotator", "item", *expressed))
    return {**row, KEY: shared.pack({"judgement": others, "item": shared.other_item_fields(item)})}


def load_outputs(rows: sources.Rows) -> Records:
    """Outputs of two or more models, in one file or several: every two outputs for one instruction
    are an item."""
    by_prompt: dict[str, dict[str, tuple[str, Row]]] = {}
    for number, row in rows.rows:
        prompt, output = (shared.text_of(rows, number, row, c) for c in ("instruction", "output"))
        if isinstance(row.get("input"), str) and row["input"]:
            prompt = f"{prompt}\n\n{row['input']}"
        model = row.get("generator")
        used = ("instruction", "output", "generator", "input")
        extra = {k: v for k, v in row.items() if k not in used}
        name = model if isinstance(model, str) else rows.name
        by_prompt.setdefault(prompt, {})[name] = (output, extra)
    records = Records()
    for prompt, outputs in by_prompt.items():
        for (i, a), (j, b) in itertools.combinations(enumerate(outputs), 2):
            fields: Row = {
                "prompt": messages(prompt),
                "completions": [outputs[a][0], outputs[b][0]],
                "models": [a, b],
                "extra": outputs[a][1],
            }
            item = shared.item_of(rows, 1, fields)
            if item.id in records.items:  # two models gave the same output
                item = item.model_copy(update={"id": f"{item.id}-{i}-{j}"})
            records.add(item)
    return records


def dump_outputs(records: Records) -> Dump:
    """Each model's output for each prompt, once."""
    outputs: dict[tuple[str, str], str] = {}
    for item in records.items.values():
        for model, text in zip(item.models or (), item.completions, strict=False):
            if model is not None:
                outputs.setdefault((model, shared.readable(item.prompt)), text)
    rows: list[Row] = [
        {"dataset": "trimtab", "instruction": prompt, "output": text, "generator": model}
        for (model, prompt), text in sorted(outputs.items())
    ]
    count = len(records.judgements)
    return Dump(rows, [f"{count} judgements have no place in outputs"] if count else [])
