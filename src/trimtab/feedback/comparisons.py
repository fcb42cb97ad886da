"""Judgements as rows to train on, and label folders as datasets."""

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel

from trimtab.data import formats, sources
from trimtab.errors import DataError
from trimtab.feedback.judgement import Item, Judgement
from trimtab.feedback.records import ITEMS, JUDGEMENTS, Records, read_folder, write
from trimtab.stats.ranking import dense_ranks
from trimtab.types import Row

_SIGNS = {1: "+", 0: "neutral", -1: "-"}
_OWN = ("plain", "of", "pair")
"""Keys that trimtab itself puts into ``Item.extra``."""


def read_comparisons(
    path: str,
    *,
    split: str | None = None,
    subset: str | None = None,
    limit: int | None = None,
    strict: bool = True,
) -> sources.Rows:
    """Rows to train on: of a label folder, its comparisons; otherwise as ``sources.read``.

    Rows of one item are adjacent, so that a held-out end shares few prompts with the rest.

    Raises:
        DataError: the folder or file cannot be used.
    """
    if not Path(path).is_dir():
        return sources.read(path, split=split, subset=subset, limit=limit, strict=strict)
    records = read_folder(path)
    rows = sorted(comparison_rows(records.items, records.current()), key=by_item)
    if not rows:
        raise DataError(f"{path}: no judgement compares two completions; label some items first")
    return sources.Rows(path, list(enumerate(rows[:limit], 1)), strict)


def by_item(row: Row) -> tuple[str, str]:
    """Sort key of comparison rows."""
    return str(row["item"]), str(row["annotator"])


def comparison_rows(
    items: Mapping[str, Item], judgements: Iterable[Judgement], *, ties: bool = True
) -> list[Row]:
    """Rows for ``trimtab reward`` and ``trimtab dpo``: ``prompt``, ``completions``, ``ranks``,
    ``annotator``, ``who`` and the item's own columns.

    Judgements of gold items, repeats, and skipped, failed or flagged ones are omitted; so are empty
    and repeated completions. An item that was sorted by pairs (``ask: sort``) becomes one row with
    all its completions, or if it is not fully sorted, one row per judged pair.

    Args:
        ties: Whether to include rows in which all completions tie.
    """
    rows: list[Row] = []
    sorted_by: defaultdict[tuple[str, str], list[Judgement]] = defaultdict(list)
    for j in judgements:
        if j.kind != "plain" or j.ranks is None or j.flagged:
            continue
        if "sort_seed" in j.detail and "of" in items[j.item].extra:
            sorted_by[str(items[j.item].extra["of"]), j.annotator].append(j)
        else:
            rows += _row(items[j.item], j, j.ranks, ties)
    for (name, _), own in sorted_by.items():
        ranks = _sorted_ranks(own, items[name])
        if ranks is None:
            rows += [row for j in own for row in _row(items[j.item], j, j.ranks or (), ties)]
        else:
            rows += _row(items[name], own[0].model_copy(update={"strength": None}), ranks, ties)
    counts: Counter[str] = Counter()
    for row in rows:
        counts[row["item"]] += 1
        row["id"] = (
            row["item"] if counts[row["item"]] == 1 else f"{row['item']}#{counts[row['item']]}"
        )
    return rows


def _row(item: Item, judgement: Judgement, ranks: Sequence[int], ties: bool) -> list[Row]:
    """One row, or none when there is nothing to learn from it."""
    texts = item.completions
    unique = [k for k, text in enumerate(texts) if text.strip() and texts.index(text) == k]
    ranks = dense_ranks([ranks[k] for k in unique])
    if len(unique) < 2 or (max(ranks) == 0 and not ties):
        return []
    row: Row = {
        **_columns(item),
        "item": item.id,
        "prompt": _prompt(item),
        "completions": [texts[k] for k in unique],
        "ranks": list(ranks),
        "annotator": judgement.annotator,
        "who": judgement.who,
    }
    if item.models is not None:
        row["models"] = [item.models[k] for k in unique]
    if judgement.strength is not None:
        row["margin"] = [float(judgement.strength) if r == 0 else 0.0 for r in ranks]
    if judgement.bad:
        row["bad"] = True
    if judgement.dimensions:
        row["dimensions"] = {
            name: [values[k] for k in unique] for name, values in judgement.dimensions.items()
        }
    return [row]


def _prompt(item: Item) -> str | list[Row]:
    return str(item.prompt[0]["content"]) if item.extra.get("plain") else list(item.prompt)


def _columns(item: Item) -> Row:
    return {k: v for k, v in item.extra.items() if k not in (*_OWN, *formats.COLUMNS)}


def step_rows(items: Mapping[str, Item], judgements: Iterable[Judgement]) -> list[Row]:
    """Rows for ``trimtab process``: ``prompt``, ``completions`` (the steps), ``labels``.

    Steps after the first unmarked one are omitted.
    """
    rows: list[Row] = []
    for j in judgements:
        item = items[j.item]
        if j.kind != "plain" or j.flagged or item.steps is None:
            continue
        for index, marks in sorted(j.steps.items()):
            marked = itertools.takewhile(lambda m: m is not None, marks)
            labels = [_SIGNS[m] for m in marked if m is not None]
            if labels:
                rows.append(
                    {
                        **_columns(item),
                        "item": item.id,
                        "answer": index,
                        "prompt": _prompt(item),
                        "completions": list(item.steps[index][: len(labels)]),
                        "labels": labels,
                        "annotator": j.annotator,
                    }
                )
    return rows


def label_files(records: Records) -> dict[str, Sequence[BaseModel | Row]]:
    """The files of a label folder by name, from current judgements."""
    files: dict[str, Sequence[BaseModel | Row]] = {
        JUDGEMENTS: records.judgements,
        ITEMS: list(records.items.values()),
        "comparisons.jsonl": sorted(
            comparison_rows(records.items, records.judgements), key=by_item
        ),
    }
    steps = step_rows(records.items, records.judgements)
    return {**files, "steps.jsonl": steps} if steps else files


def write_folder(folder: Path, records: Records) -> dict[str, int]:
    """Write the files of a label folder.

    Returns:
        Rows of each file, by its name.

    Raises:
        OSError: the disk refuses; earlier files are unchanged.
    """
    files = label_files(records)
    for name, rows in files.items():
        write(folder / name, rows)
    return {name: len(rows) for name, rows in files.items()}


# --- sorting by pairs

PairOrder = Mapping[tuple[int, int], int]
"""By pair (i, j), i < j: -1 if i is better, 1 if j is, 0 for a tie."""


def display_order(seed: int, k: int) -> tuple[int, ...]:
    """[k] completions in the order in which they are shown: ``Judgement.order`` for this seed."""
    order = list(range(k))
    random.Random(seed).shuffle(order)
    return tuple(order)


def pair_order(judgements: Iterable[Judgement]) -> PairOrder:
    """The verdicts on pairs of one item, whose ids end with the indices in that item ("x:0-2")."""
    orders: dict[tuple[int, int], int] = {}
    for j in judgements:
        i, k = (int(x) for x in j.item.rpartition(":")[2].split("-"))
        if j.ranks is not None:
            orders[i, k] = (j.ranks[0] > j.ranks[1]) - (j.ranks[0] < j.ranks[1])
    return orders


def _sorted_ranks(judgements: Sequence[Judgement], item: Item) -> tuple[int, ...] | None:
    """Ranks [K] of an item from the verdicts on its pairs; None if more verdicts are needed."""
    k = len(item.completions)
    seed = int(judgements[0].detail["sort_seed"])
    result = sort_step(k, pair_order(judgements), seed)
    return result if len(result) == k else None


def sort_step(k: int, orders: PairOrder, seed: int) -> tuple[int, int] | tuple[int, ...]:
    """The next pair to compare when sorting ``k`` completions, or their ranks when sorted.

    Binary insertion: at most the sum of ceil(log2(n)) for n = 2 to k comparisons (Knuth 5.3.1), 21
    instead of 36 for nine completions; ties need fewer. It has no state, so after an undo only the
    comparison taken back is asked again.

    Returns:
        (i, j) with i < j while ``orders`` does not determine the ranks; then the ranks [k].

    >>> sort_step(3, {(0, 1): -1, (0, 2): -1, (1, 2): 0}, seed=0)
    (0, 1, 1)
    """
    groups: list[list[int]] = []
    for x in display_order(seed, k):
        low, high = 0, len(groups)
        while low < high:
            middle = (low + high) // 2
            y = groups[middle][0]
            key = (min(x, y), max(x, y))
            if key not in orders:
                return key
            better = orders[key] if x < y else -orders[key]
            if better == 0:
                groups[middle].append(x)
                break
            low, high = (low, middle) if better < 0 else (middle + 1, high)
        else:
            groups.insert(low, [x])
    ranks = [0] * k
    for place, group in enumerate(groups):
        for x in group:
            ranks[x] = place
    return tuple(ranks)
