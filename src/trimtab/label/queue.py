"""Order of the label queue. Pure functions of seeds."""

import hashlib
import itertools

from trimtab.feedback.items import Entry
from trimtab.feedback.judgement import Item
from trimtab.label.label_config import Plan


def draw(*parts: object) -> int:
    """A number in [0, 2^48) that depends only on ``parts``."""
    text = "\0".join(str(p) for p in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def share(*parts: object) -> float:
    """A number in [0, 1) that depends only on ``parts``."""
    return draw(*parts) / 2**48


def pair(item: Item, i: int, j: int) -> Item:
    """Completions ``i`` and ``j`` of an item, i < j, as an item; ``extra`` says where they are from."""
    at = (i, j)
    return Item(
        id=f"{item.id}:{i}-{j}",
        prompt=item.prompt,
        completions=tuple(item.completions[x] for x in at),
        models=None if item.models is None else tuple(item.models[x] for x in at),
        steps=None if item.steps is None else tuple(item.steps[x] for x in at),
        extra={**item.extra, "of": item.id, "pair": [i, j]},
    )


def expand(entry: Entry, plan: Plan) -> list[Entry]:
    """What is asked of an entry: itself, or with ``ask: pairs`` every pair of its completions."""
    item, score, gold = entry.item, entry.score, entry.gold
    k = len(item.completions)
    highest = score if isinstance(score, float | int) else max(itertools.chain(*score), default=0.0)
    if plan.ask != "pairs" or k <= 2:
        return [Entry(item, gold, highest)]
    entries: list[Entry] = []
    for i, j in itertools.combinations(range(k), 2):
        pair_score = score if isinstance(score, float | int) else score[i][j]
        ranks = None if gold is None else (int(gold[i] > gold[j]), int(gold[j] > gold[i]))
        entries.append(Entry(pair(item, i, j), ranks, pair_score))
    return entries


def sort_key(entry: Entry, index: int, plan: Plan) -> tuple[float, float]:
    """Lower is asked first; the second number decides among equals."""
    if plan.order == "given":
        return 0.0, float(index)
    first = 0.0
    if plan.order == "active" and not isinstance(entry.score, tuple):
        first = -float(entry.score)
    return first, share(plan.seed, "order", entry.item.id)
