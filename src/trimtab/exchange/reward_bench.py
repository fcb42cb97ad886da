"""RewardBench (2403.13787: one chosen, one rejected) and RewardBench 2 (2506.01937: lists of both).

Their labels are ground truth: judgements of ``who`` "gold". Pairs are written as the ``rewardbench``
program reads them from a file (``--dataset FILE --load_json``): ``chosen`` and ``rejected`` are whole
conversations, and there is no ``prompt``. The benchmark's own files have a prompt and two texts.
"""

from __future__ import annotations

from typing import Any, cast

from trimtab.data import sources
from trimtab.errors import DataError
from trimtab.exchange import fields as shared
from trimtab.exchange.fields import KEY, Dump
from trimtab.feedback.judgement import Item, Judgement
from trimtab.feedback.records import Records, messages
from trimtab.types import Row

FIRST = ("prompt", "chosen", "chosen_model", "rejected", "rejected_model", "id")
SECOND = (
    "prompt",
    "chosen",
    "rejected",
    "models",
    "id",
    "num_correct",
    "num_incorrect",
    "total_completions",
)
NAME = "reward-bench"


def sniff(row: Row) -> bool:
    """Whether a row is of either."""
    if _conversations(row):
        return "chosen_model" in row
    if not isinstance(row.get("prompt"), str) or "rejected" not in row:
        return False
    return "chosen_model" in row or (isinstance(row.get("chosen"), list) and "subset" in row)


def _conversations(row: Row) -> bool:
    """Whether chosen and rejected are whole conversations that share all but their last turn."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    return (
        isinstance(chosen, list)
        and isinstance(rejected, list)
        and all(isinstance(m, dict) for m in cast("list[Any]", [*chosen, *rejected]))
        and len(cast("list[Any]", chosen)) > 1
        and chosen[:-1] == rejected[:-1]
    )


def load(rows: sources.Rows) -> Records:
    """Items with their gold judgement; the order of the completions does not reveal the best."""
    records = Records()
    for number, row in rows.rows:
        column = shared.unpack(row)
        prompt = None
        if _conversations(row):
            prompt = row["chosen"][:-1]
            row = {**row, **{k: row[k][-1].get("content") for k in ("chosen", "rejected")}}
        second = isinstance(row.get("chosen"), list)
        chosen: list[Any] = list(row["chosen"]) if second else [row.get("chosen")]
        rejected: list[Any] = list(row["rejected"]) if second else [row.get("rejected")]
        texts = [*chosen, *rejected]
        if not chosen or not rejected or not all(isinstance(t, str) for t in texts):
            raise DataError(f"{rows.name}: row {number}: 'chosen' and 'rejected' must hold texts")
        pair = [row.get("chosen_model"), row.get("rejected_model")]
        models: Any = row.get("models") if second else pair
        complete = isinstance(models, list) and len(cast(list[Any], models)) == len(texts)
        order = column.get("order") or shared.order_by_text(texts)
        fields: Row = {
            "prompt": prompt or messages(shared.text_of(rows, number, row, "prompt")),
            "completions": [texts[k] for k in order],
        }
        if complete and any(models):
            fields["models"] = [models[k] for k in order]
        if not column:
            original: Row = {"id": row.get("id")} | ({} if complete else {"models": models})
            original |= {"conversations": True} if prompt else {}
            used = (*(SECOND if second else FIRST), KEY)
            fields["extra"] = {k: v for k, v in row.items() if k not in used} | {
                "reward_bench": original | ({"order": order} if second else {})
            }
        fields |= column.get("item", {})
        if "id" not in fields and row.get("id") is not None:
            fields["id"] = f"{row.get('subset', 'rb')}/{row['id']}"
        item = shared.item_of(rows, number, fields)
        records.add(item)
        ranks = [int(k >= len(chosen)) for k in order]
        judgement = column.get("judgement", {"annotator": NAME, "who": "gold"})
        fields = {"ranks": ranks, **judgement, "item": item.id}
        records.judgements.append(shared.judgement_of(rows, number, fields))
    return records


def dump(records: Records) -> Dump:
    """One row per judgement that separates good from bad completions: pairs in the columns of the
    first RewardBench, more completions in those of the second."""
    numbered = enumerate(records.judgements)
    split = [(n, j) for n, j in numbered if j.ranks is not None and len(set(j.ranks)) > 1]
    omitted = len(records.judgements) - len(split)
    notes = [f"{omitted} judgements have no best and worse completion"] if omitted else []
    rows = [_row(records.items[j.item], j, number) for number, j in split]
    return Dump(rows, notes + shared.unjudged(records))


def _row(item: Item, j: Judgement, number: int) -> Row:
    assert j.ranks is not None
    texts = item.completions
    extra = dict(item.extra)
    original: Row = extra.pop("reward_bench", {})
    places: list[int] = original.get("order", list(range(len(texts))))
    listed = sorted(range(len(texts)), key=lambda k: places[k])
    chosen = [k for k in listed if j.ranks[k] == 0]
    rejected = [k for k in listed if j.ranks[k] != 0]
    models = item.models or (None,) * len(texts)
    row: Row = {"id": original.get("id", number)}
    if len(texts) > 2 or "order" in original:
        row |= {
            "prompt": shared.readable(item.prompt),
            "chosen": [texts[k] for k in chosen],
            "rejected": [texts[k] for k in rejected],
            "num_correct": len(chosen),
            "num_incorrect": len(rejected),
            "total_completions": len(texts),
            "models": original.get("models", [models[k] for k in (*chosen, *rejected)]),
        }
    else:
        a, b = chosen[0], rejected[0]
        if original and not original.get("conversations"):  # of the benchmark's own files
            row["prompt"] = shared.readable(item.prompt)
            row |= {"chosen": texts[a], "rejected": texts[b]}
        else:
            for name, k in (("chosen", a), ("rejected", b)):
                row[name] = [*item.prompt, {"role": "assistant", "content": texts[k]}]
            # The program takes "question" and "input" for the prompt, and needs one type per column.
            extra = extra if original else {}
        row |= {"chosen_model": models[a], "rejected_model": models[b]}
    row |= {"subset": "trimtab", **extra}
    back = load(sources.Rows("", [(1, row)]))
    if back.items.get(item.id) == item and back.judgements == [j]:
        return row
    column = {
        "item": shared.other_item_fields(item, *(() if "prompt" in row else ("prompt",))),
        "judgement": shared.other_fields(
            j, ("item", "ranks") if set(j.ranks) == {0, 1} else ("item",)
        ),
        "order": [(*chosen, *rejected).index(k) for k in range(len(texts))],
    }
    return {**row, KEY: shared.pack(column)}
