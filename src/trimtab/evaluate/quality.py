"""Each annotator: right how often, steady or not, drifting or not, contradicting themselves where."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import ndtr

from trimtab.feedback.records import Records
from trimtab.feedback.votes import FIRST, SECOND, TIE, Pair, Vote, majority, prompt_key
from trimtab.stats.ranking import Triads, triads
from trimtab.stats.reliability import dawid_skene
from trimtab.stats.uncertainty import draws, wilson


def share(right: Sequence[float]) -> dict[str, float] | None:
    """A share with Wilson's interval; None of nothing."""
    if not right:
        return None
    low, high = wilson(sum(right), len(right))
    return {"value": sum(right) / len(right), "low": low, "high": high, "n": float(len(right))}


def accuracies(
    by_unit: Mapping[Pair, Mapping[str, int]], names: Sequence[str], n: int, seed: int
) -> tuple[dict[str, dict[str, float]], dict[Pair, np.ndarray]]:
    """Dawid-Skene accuracy of each annotator with a bootstrap over items, and P(class) of each
    pair that two or more judged. Empty where fewer than three annotators share pairs: two cannot
    be told apart by their agreement alone."""
    place = {name: i for i, name in enumerate(names)}
    shared = [u for u, mine in by_unit.items() if sum(w in place for w in mine) >= 2]
    seen = {w for u in shared for w in by_unit[u] if w in place}
    if len(seen) < 3:
        return {}, {}
    rows = [
        (k, place[w], said)
        for k, u in enumerate(shared) for w, said in by_unit[u].items() if w in place
    ]  # fmt: skip
    unit, rater, said = (np.array(c, dtype=np.intp) for c in zip(*rows, strict=True))
    whole = dawid_skene(unit, rater, said, 3)
    items = {name: i for i, name in enumerate(dict.fromkeys(u[0] for u in shared))}
    owner = np.array([items[u[0]] for u in shared])
    spread = np.array(
        [
            dawid_skene(unit, rater, said, 3, weight[owner], steps=30, tol=1e-4).accuracy
            for weight in draws(len(items), n, seed)
        ]
    )
    low, high = np.quantile(spread, [0.025, 0.975], axis=0)
    known = set(rater.tolist())
    return (
        {
            name: {
                "value": float(whole.accuracy[i]),
                "low": float(low[i]),
                "high": float(high[i]),
            }
            for name, i in place.items()
            if i in known
        },
        {u: whole.posterior_UC[k] for k, u in enumerate(shared)},
    )


def against_others(
    cast: Sequence[Vote], by_unit: Mapping[Pair, Mapping[str, int]], people: set[str]
) -> dict[str, list[tuple[str, float]]]:
    """annotator -> (when, 1 if with the majority of the other people, else 0), in order of time.

    Pairs on which the others are equally divided say nothing.
    """
    found: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for order, v in enumerate(cast):
        if v.judgement.kind == "repeat" or v.judgement.who == "gold":
            continue
        others = [s for w, s in by_unit[v.pair].items() if w != v.annotator and w in people]
        most = majority(others)
        if most is not None and most != TIE:
            when = v.judgement.at or f"~{order:012d}"
            found[v.annotator].append((when, 0.5 if v.choice == TIE else float(v.choice == most)))
    return {name: sorted(seen, key=lambda x: x[0]) for name, seen in found.items()}


def drift(seen: Sequence[tuple[str, float]], at_least: int = 20) -> dict[str, float] | None:
    """Agreement with the others in the later half minus that in the earlier, 95 % interval, and p.

    None with fewer than ``at_least`` judgements a half.
    """
    right = np.array([r for _, r in seen])
    half = len(right) // 2
    if half < at_least:
        return None
    early, late = right[:half], right[half:]
    # One right and one wrong more in each half (Agresti and Caffo 2000), so that halves without
    # a fault have an interval too.
    means = [(h.sum() + 1) / (len(h) + 2) for h in (early, late)]
    error = math.sqrt(
        sum(m * (1 - m) / (len(h) + 2) for m, h in zip(means, (early, late), strict=True))
    )
    middle = means[1] - means[0]
    return {
        "value": float(late.mean() - early.mean()),
        "low": middle - 1.959964 * error,
        "high": middle + 1.959964 * error,
        "p": float(2 * ndtr(-abs(middle) / error)),
    }


def steadiness(cast: Sequence[Vote]) -> dict[str, dict[str, float] | None]:
    """annotator -> share of pairs said alike when asked again (kind "repeat")."""
    first: dict[tuple[str, Pair], int] = {}
    again: dict[str, list[float]] = defaultdict(list)
    for v in cast:
        if v.judgement.kind != "repeat":
            first.setdefault((v.annotator, v.pair), v.choice)
    for v in cast:
        before = first.get((v.annotator, v.pair))
        if v.judgement.kind == "repeat" and before is not None:
            again[v.annotator].append(float(before == v.choice))
    return {name: share(same) for name, same in again.items()}


def swaps(cast: Sequence[Vote]) -> dict[str, dict[str, float]]:
    """annotator -> of pairs judged in both orders, how often the winner is the same
    (``consistency``), and P(first wins) - 1/2 over both (``bias``)."""
    seen: dict[tuple[str, Pair], dict[bool, int]] = defaultdict(dict)
    for v in cast:
        if v.judgement.kind != "repeat":
            seen[v.annotator, v.pair].setdefault(v.a_shown_first, v.choice)
    both: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for (name, _), said in seen.items():
        if len(said) == 2:
            led, followed = said[True], said[False]
            first = [
                0.5 if s == TIE else float(s == w) for s, w in ((led, FIRST), (followed, SECOND))
            ]
            both[name].append((float(led == followed), sum(first) / 2))
    out: dict[str, dict[str, float]] = {}
    for name, found in both.items():
        same = share([s for s, _ in found])
        assert same is not None
        out[name] = {
            "consistency": same["value"], "low": same["low"], "high": same["high"],
            "bias": sum(f for _, f in found) / len(found) - 0.5, "n": float(len(found)),
        }  # fmt: skip
    return out


def against_gold(
    by_unit: Mapping[Pair, Mapping[str, int]], gold: Mapping[Pair, float], names: Sequence[str]
) -> dict[str, dict[str, float] | None]:
    """annotator -> share of pairs with a known better answer on which they chose it; ties half."""
    right: dict[str, list[float]] = {name: [] for name in names}
    for unit, gap in gold.items():
        for who, said in by_unit.get(unit, {}).items():
            if gap and who in right:
                right[who].append(0.5 if said == TIE else float((said == FIRST) == (gap > 0)))
    return {name: share(r) for name, r in right.items() if r}


def cycles(
    records: Records, cast: Sequence[Vote], names: Sequence[str], worst: int = 10
) -> dict[str, Any]:
    """Contradictions of each annotator and of all together, among the answers to one prompt.

    Returns:
        ``by``: annotator, or "" for the majority of all, -> cycles, triples, rate, zeta (mean over
        complete prompts); ``items``: the items that are in most cycles of the annotators, with how
        many. A ranking has none in itself: cycles come from several items of one prompt.
    """
    by_name: dict[str, dict[str, list[Vote]]] = defaultdict(lambda: defaultdict(list))
    keys = {i: prompt_key(item) for i, item in records.items.items()}
    wanted = set(names)
    for v in cast:
        if v.annotator in wanted and v.judgement.kind != "repeat":
            by_name[v.annotator][keys[v.pair[0]]].append(v)
            by_name[""][keys[v.pair[0]]].append(v)
    guilty: Counter[str] = Counter()
    told: dict[str, dict[str, float | None]] = {}
    for name, by_prompt in by_name.items():
        total, triples, zetas = 0, 0, list[float]()
        for mine in by_prompt.values():
            found, blame = _prompt_cycles(records, mine)
            total += len(found.cycles)
            triples += found.triples
            zetas += [found.zeta] if found.zeta is not None else []
            if name:
                guilty.update(blame)
        told[name] = {
            "cycles": float(total), "triples": float(triples),
            "rate": total / triples if triples else None,
            "zeta": float(np.mean(zetas)) if zetas else None,
        }  # fmt: skip
    return {"by": told, "items": [{"item": i, "cycles": n} for i, n in guilty.most_common(worst)]}


def _prompt_cycles(records: Records, mine: Sequence[Vote]) -> tuple[Triads, Counter[str]]:
    """Cycles among the answers, told apart by their text, and the items whose pairs make them."""
    texts: dict[str, int] = {}
    for v in mine:
        for k in v.pair[1:]:
            texts.setdefault(records.items[v.pair[0]].completions[k], len(texts))
    wins = np.zeros((len(texts), len(texts)))
    where: dict[tuple[int, int], set[str]] = defaultdict(set)
    for v in mine:
        item, a, b = v.pair
        i, j = (texts[records.items[item].completions[k]] for k in (a, b))
        if i != j and v.choice != TIE:
            i, j = (i, j) if v.choice == FIRST else (j, i)
            wins[i, j] += 1
            where[i, j].add(item)
    found = triads(wins)
    blame: Counter[str] = Counter()
    for a, b, c in found.cycles:
        blame.update(where[a, b] | where[b, c] | where[c, a])
    return found, blame
