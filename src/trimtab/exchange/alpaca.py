"""AlpacaEval: annotations (https://github.com/tatsu-lab/alpaca_eval) and models' outputs.

``preference`` is 1 if output_1 is better, 2 if output_2 is, 1.5 (in old files 0) for a tie, between
1 and 2 for a probability, and nothing where the annotator failed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from trimtab.data import sources
from trimtab.exchange import fields as rest
from trimtab.exchange.fields import KEY, Dumped, Row
from trimtab.feedback.judgement import Item, Judgement
from trimtab.feedback.records import Records

COLUMNS = ("instruction", "output_1", "generator_1", "output_2", "generator_2", "annotator",
           "preference")  # fmt: skip


def sniff(row: Row) -> bool:
    """Annotations."""
    return {"instruction", "output_1", "output_2", "preference"} <= row.keys()


def sniff_outputs(row: Row) -> bool:
    """Outputs of a model."""
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
    """Annotations: other columns are kept with the judgement."""
    found = Records()
    for number, row in rows.rows:
        kept = rest.unpacked(row)
        columns = ("instruction", "output_1", "output_2")
        texts = [rest.text(rows.name, number, row, c) for c in columns]
        models = (row.get("generator_1"), row.get("generator_2"))
        fields: Row = {
            "prompt": rest.question(texts[0]), "completions": texts[1:],
            **({"models": models} if any(m is not None for m in models) else {}),
            **kept.get("item", {}),
        }  # fmt: skip
        item = rest.item(rows.name, number, fields)
        found.add(item)
        said = _verdict(row["preference"])
        if not kept:
            others = {k: v for k, v in row.items() if k not in (*COLUMNS, KEY)}
            if _preference(said.get("ranks"), said.get("prob")) != row["preference"]:
                others["preference"] = row["preference"]  # an old tie, say: kept as it was
            said = {"who": "ai", **said, **({"detail": {"alpaca_eval": others}} if others else {})}
        mine = {**said, **kept.get("judgement", {}), "item": item.id}
        name = row.get("annotator")
        mine["annotator"] = name if isinstance(name, str) else mine.get("annotator", "alpaca_eval")
        found.judgements.append(rest.judgement(rows.name, number, mine))
    return found


def dump(records: Records) -> Dumped:
    """A row for every judgement of a pair."""
    rows: list[Row] = []
    wide = 0
    for j in records.judgements:
        item = records.items[j.item]
        if len(item.completions) != 2:
            wide += 1
            continue
        models = item.models or (None, None)
        preference = _preference(j.ranks, j.prob)
        detail = dict(j.detail)
        foreign: Row = detail.pop("alpaca_eval", {})
        row: Row = {
            "instruction": rest.readable(item.prompt),
            "output_1": item.completions[0], "generator_1": models[0],
            "output_2": item.completions[1], "generator_2": models[1],
            "annotator": j.annotator, "preference": preference,
        }  # fmt: skip
        theirs = {**row, **foreign}
        if _reads_back(theirs, item, j):
            rows.append(theirs)
            continue
        known: tuple[str, ...] = ("annotator", "item")
        if {k: v for k, v in rest.rest(j).items() if k in ("ranks", "prob")} == _verdict(
            preference
        ):
            known = (*known, "ranks", "prob")
        hidden = {"judgement": rest.rest(j, known), "item": _item_rest(item)}
        rows.append({**row, KEY: rest.packed(hidden)})
    return rows, [f"{wide} judgements are not of two answers"] if wide else []


def _item_rest(item: Item) -> Row:
    known = ["completions"] + (["prompt"] if rest.plain(item.prompt) is not None else [])
    return rest.rest(item, known)


def _reads_back(row: Row, item: Item, j: Judgement) -> bool:
    """Whether the format's own columns say all there is."""
    back = load(sources.Rows("", [(1, row)]))
    return back.items.get(item.id) == item and back.judgements == [j]


def load_outputs(rows: sources.Rows) -> Records:
    """Outputs of two or more models, in one file or several: every two that answer one instruction
    are an item."""
    by_prompt: dict[str, dict[str, tuple[str, Row]]] = {}
    for number, row in rows.rows:
        said = [rest.text(rows.name, number, row, c) for c in ("instruction", "output")]
        given = row.get("input")
        asked = f"{said[0]}\n\n{given}" if isinstance(given, str) and given else said[0]
        model = row.get("generator")
        name = model if isinstance(model, str) else rows.name
        extra = {
            k: v for k, v in row.items() if k not in ("instruction", "output", "generator", "input")
        }
        by_prompt.setdefault(asked, {})[name] = (said[1], extra)
    found = Records()
    for asked, mine in by_prompt.items():
        names = list(mine)
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                fields = {
                    "prompt": rest.question(asked), "completions": [mine[a][0], mine[b][0]],
                    "models": [a, b], "extra": mine[a][1],
                }  # fmt: skip
                item = rest.item(rows.name, 1, fields)
                # Two models may say the same of one prompt, and a third pair then looks alike.
                named = item.model_copy(update={"id": f"{item.id}-{i}-{names.index(b)}"})
                found.add(named if item.id in found.items else item)
    return found


def dump_outputs(records: Records) -> Dumped:
    """Each model's answer to each prompt, once."""
    seen: dict[tuple[str, str], str] = {}
    for item in records.items.values():
        for model, answer in zip(item.models or (), item.completions, strict=False):
            if model is not None:
                seen.setdefault((model, rest.readable(item.prompt)), answer)
    rows: list[Row] = [
        {"dataset": "trimtab", "instruction": p, "output": a, "generator": m}
        for (m, p), a in sorted(seen.items())
    ]
    notes = [f"{len(records.judgements)} judgements have no place in outputs"]
    return rows, notes if records.judgements else []
