"""RewardBench (2403.13787: one chosen, one rejected) and RewardBench 2 (2506.01937: lists of both).

Their labels are known answers: judgements of ``who`` "gold".
"""

from __future__ import annotations

from typing import Any

from trimtab.data import sources
from trimtab.errors import DataError
from trimtab.exchange import fields as rest
from trimtab.exchange.fields import KEY, Dumped, Row
from trimtab.feedback.judgement import Item, Judgement
from trimtab.feedback.records import Records

FIRST = ("prompt", "chosen", "chosen_model", "rejected", "rejected_model", "id")
SECOND = ("prompt", "chosen", "rejected", "models", "id", "num_correct", "num_incorrect",
          "total_completions")  # fmt: skip
NAME = "reward-bench"


def sniff(row: Row) -> bool:
    """Either."""
    if not isinstance(row.get("prompt"), str) or "rejected" not in row:
        return False
    return "chosen_model" in row or (isinstance(row.get("chosen"), list) and "subset" in row)


def load(rows: sources.Rows) -> Records:
    """Items with their gold judgement; the order of answers does not tell which is right."""
    found = Records()
    for number, row in rows.rows:
        kept = rest.unpacked(row)
        second = isinstance(row.get("chosen"), list)
        good: list[Any] = list(row["chosen"]) if second else [row.get("chosen")]
        poor: list[Any] = list(row["rejected"]) if second else [row.get("rejected")]
        if not good or not poor or not all(isinstance(a, str) for a in (*good, *poor)):
            raise DataError(f"{rows.name}: row {number}: 'chosen' and 'rejected' must hold texts")
        models = (
            row.get("models") if second else [row.get("chosen_model"), row.get("rejected_model")]
        )
        named = (
            list(models) if models is not None and len(models) == len(good) + len(poor) else None
        )
        known = SECOND if second else FIRST
        order = kept.get("order") or rest.shuffled([*good, *poor])
        all_, ranks = [*good, *poor], [0] * len(good) + [1] * len(poor)
        extra = {k: v for k, v in row.items() if k not in (*known, KEY)}
        if not kept:
            theirs: Row = {"id": row.get("id")} | ({} if named else {"models": models})
            extra["reward_bench"] = theirs | ({"order": order} if second else {})
        fields: Row = {
            "prompt": rest.question(rest.text(rows.name, number, row, "prompt")),
            "completions": [all_[k] for k in order],
            **({"models": [named[k] for k in order]} if named and any(named) else {}),
            **({} if kept else {"extra": extra}),
            **kept.get("item", {}),
        }  # fmt: skip
        if "id" not in fields and row.get("id") is not None:
            fields["id"] = f"{row.get('subset', 'rb')}/{row['id']}"
        item = rest.item(rows.name, number, fields)
        found.add(item)
        said: Row = {"annotator": NAME, "who": "gold"}
        mine = {**kept.get("judgement", said), "item": item.id}
        mine.setdefault("ranks", [ranks[k] for k in order])
        found.judgements.append(rest.judgement(rows.name, number, mine))
    return found


def dump(records: Records) -> Dumped:
    """A row for every judgement that tells good answers from poor ones: pairs in the columns of the
    first, more answers in those of the second RewardBench."""
    rows: list[Row] = []
    vague = 0
    for number, j in enumerate(records.judgements):
        if j.ranks is None or len(set(j.ranks)) < 2:
            vague += 1
            continue
        rows.append(_row(records.items[j.item], j, number))
    notes = [f"{vague} judgements tell no good answer from a poor one"] if vague else []
    unasked = len(records.items.keys() - {j.item for j in records.judgements})
    return rows, notes + ([f"{unasked} items have no judgement"] if unasked else [])


def _row(item: Item, j: Judgement, number: int) -> Row:
    assert j.ranks is not None
    extra = dict(item.extra)
    foreign: Row = extra.pop("reward_bench", {})
    places: list[int] = foreign.get("order", list(range(len(item.completions))))
    listed = sorted(range(len(item.completions)), key=lambda k: places[k])
    good = [k for k in listed if j.ranks[k] == 0]
    poor = [k for k in listed if j.ranks[k] != 0]
    prompt = rest.readable(item.prompt)
    models = item.models or (None,) * len(item.completions)
    ident = foreign.get("id", number)
    second = len(item.completions) > 2 or "order" in foreign
    if second:
        row: Row = {
            "id": ident, "prompt": prompt, "chosen": [item.completions[k] for k in good],
            "rejected": [item.completions[k] for k in poor], "num_correct": len(good),
            "num_incorrect": len(poor), "total_completions": len(item.completions),
            "models": foreign.get("models", [models[k] for k in (*good, *poor)]),
        }  # fmt: skip
    else:
        a, b = good[0], poor[0]
        row = {
            "prompt": prompt, "chosen": item.completions[a], "chosen_model": models[a],
            "rejected": item.completions[b], "rejected_model": models[b], "id": ident,
        }  # fmt: skip
    whole = {**row, **extra, **({} if "subset" in extra else {"subset": "trimtab"})}
    back = load(sources.Rows("", [(1, whole)]))
    if back.items.get(item.id) == item and back.judgements == [j]:
        return whole
    order = [(*good, *poor).index(k) for k in range(len(item.completions))]
    known = ["completions"] + (["prompt"] if rest.plain(item.prompt) is not None else [])
    plain = ("item", "ranks") if set(j.ranks) == {0, 1} else ("item",)
    hidden = {"item": rest.rest(item, known), "judgement": rest.rest(j, plain), "order": order}
    return {**whole, KEY: rest.packed(hidden)}
