"""Judgements as files: records, rows for ``trimtab reward``, rows for ``trimtab process``."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trimtab.feedback.judgement import Item, Judgement
from trimtab.label import queue
from trimtab.label.store import Kept, Store
from trimtab.runs import write_atomic

_SIGNS = {1: "+", 0: "neutral", -1: "-"}


def _asked(item: Item) -> str | list[dict[str, Any]]:
    if item.extra.get("plain"):
        return str(item.prompt[0]["content"])
    return list(item.prompt)


def _columns(item: Item) -> dict[str, Any]:
    """The row's other columns, those that trimtab made left out."""
    return {k: v for k, v in item.extra.items() if k not in ("plain", "of", "pair")}


def _row(item: Item, judgement: Judgement, ranks: tuple[int, ...]) -> dict[str, Any]:
    row: dict[str, Any] = {
        **_columns(item),
        "item": item.id,
        "prompt": _asked(item),
        "completions": list(item.answers),
        "ranks": list(ranks),
        "annotator": judgement.annotator,
    }
    if item.models is not None:
        row["models"] = list(item.models)
    if judgement.strength is not None:
        row["margin"] = [float(judgement.strength) if r == 0 else 0.0 for r in ranks]
    if judgement.bad:
        row["bad"] = True
    if judgement.dimensions:
        row["dimensions"] = {k: list(v) for k, v in judgement.dimensions.items()}
    return row


def comparisons(kept: Iterable[Kept], items: Mapping[str, Item], ask: str) -> list[dict[str, Any]]:
    """Rows that ``trimtab reward`` reads: ``prompt``, ``completions``, ``ranks``, ``annotator``.

    Gold items, repeats, what was skipped and what was flagged are left out. With ``ask: sort`` an
    item sorted to the end is one row with all its answers; one left half-way gives its pairs.
    Rows of one item stand together, so that a held-out end shares few prompts with the rest.
    """
    rows: list[dict[str, Any]] = []
    sorted_: defaultdict[int, list[Judgement]] = defaultdict(list)
    seeds: dict[int, int] = {}
    for one in kept:
        j = one.judgement
        if j.kind != "plain" or j.status != "ok" or j.flagged or j.ranks is None:
            continue
        item = items[j.item]
        if ask == "sort" and "of" in item.extra:
            sorted_[one.place].append(j)
            seeds[one.place] = one.seed
        elif len(item.answers) > 1:
            rows.append(_row(item, j, j.ranks))
    for place, mine in sorted_.items():
        rows += _sorted(mine, seeds[place], items)
    return sorted(rows, key=lambda row: (str(row["item"]), str(row["annotator"])))


def _sorted(mine: list[Judgement], seed: int, items: Mapping[str, Item]) -> list[dict[str, Any]]:
    whole = items[str(items[mine[0].item].extra["of"])]
    said: dict[tuple[int, int], int] = {}
    for j in mine:
        i, k = items[j.item].extra["pair"]
        assert j.ranks is not None
        said[i, k] = (j.ranks[0] > j.ranks[1]) - (j.ranks[0] < j.ranks[1])
    found = queue.sort_step(len(whole.answers), said, seed)
    if len(found) == len(whole.answers):
        return [_row(whole, mine[0].model_copy(update={"strength": None}), found)]
    return [_row(items[j.item], j, j.ranks) for j in mine if j.ranks is not None]


def steps(kept: Iterable[Kept], items: Mapping[str, Item]) -> list[dict[str, Any]]:
    """Rows that ``trimtab process`` reads: ``prompt``, ``completions`` (steps), ``labels``.

    Steps after the first that is not marked are left out.
    """
    rows: list[dict[str, Any]] = []
    for one in kept:
        j = one.judgement
        item = items[j.item]
        if j.kind != "plain" or j.flagged or item.steps is None:
            continue
        for answer, marks in sorted(j.steps.items()):
            marked = itertools.takewhile(lambda m: m is not None, marks)
            labels = [_SIGNS[m] for m in marked if m is not None]
            if labels:
                rows.append(
                    {
                        **_columns(item),
                        "item": item.id,
                        "answer": answer,
                        "prompt": _asked(item),
                        "completions": list(item.steps[answer][: len(labels)]),
                        "labels": labels,
                        "annotator": j.annotator,
                    }
                )
    return rows


def lines(rows: Iterable[Any]) -> bytes:
    """Rows or records as JSON lines."""
    made = (r.model_dump(mode="json") if hasattr(r, "model_dump") else r for r in rows)
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in made).encode()


def files(store: Store) -> dict[str, list[Any]]:
    """What is exported, by file name."""
    kept, items = store.kept(), store.items()
    made: dict[str, list[Any]] = {
        "judgements.jsonl": [k.judgement for k in kept],
        "items.jsonl": list(items.values()),
        "comparisons.jsonl": comparisons(kept, items, store.plan.ask),
    }
    marked = steps(kept, items)
    return {**made, "steps.jsonl": marked} if marked else made


def export(store: Store, out: Path) -> dict[str, int]:
    """Write the files into ``out``.

    Returns:
        Rows of each file, by its name.

    Raises:
        OSError: the disk refuses; earlier files stay.
    """
    made = files(store)
    for name, rows in made.items():
        write_atomic(out / name, lines(rows))
    return {name: len(rows) for name, rows in made.items()}
