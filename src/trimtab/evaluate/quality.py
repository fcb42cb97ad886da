"""Quality of each annotator: accuracy, consistency, drift and contradictions."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from trimtab.evaluate.agreement_result import BothOrders, Cycles, Drift, Figure, ItemCycles, Share
from trimtab.feedback.records import Records
from trimtab.feedback.votes import FIRST, SECOND, TIE, Choices, Pair, Vote, majority, prompt_key
from trimtab.stats.ranking import Triads, triads
from trimtab.stats.reliability import dawid_skene
from trimtab.stats.uncertainty import cluster_ids, draws

Floats = npt.NDArray[np.float64]


def accuracies(
    choices: Choices, names: Sequence[str], n: int, seed: int
) -> tuple[dict[str, Figure], dict[Pair, Floats]]:
    """Dawid-Skene accuracy of each annotator, with a bootstrap over items.

    Returns:
        Accuracy by annotator, and P(class) of each pair that two or more judged. Both are empty
        with fewer than three annotators who share pairs: agreement alone does not show which of
        two is right.
    """
    ids = {name: i for i, name in enumerate(names)}
    shared = [p for p, by_name in choices.items() if sum(name in ids for name in by_name) >= 2]
    labels = [
        (k, ids[name], choice)
        for k, pair in enumerate(shared)
        for name, choice in choices[pair].items()
        if name in ids
    ]
    if len({rater for _, rater, _ in labels}) < 3:
        return {}, {}
    unit_N, rater_N, label_N = (np.array(c, dtype=np.intp) for c in zip(*labels, strict=True))
    fit = dawid_skene(unit_N, rater_N, label_N, 3)
    item_U = cluster_ids(p[0] for p in shared)
    samples = np.array(
        [
            dawid_skene(unit_N, rater_N, label_N, 3, weight[item_U], steps=30, tol=1e-4).accuracy
            for weight in draws(int(item_U.max()) + 1, n, seed)
        ]
    )
    low, high = np.quantile(samples, [0.025, 0.975], axis=0)
    raters = set(rater_N.tolist())
    accuracy = {
        name: Figure(float(fit.accuracy[i]), float(low[i]), float(high[i]))
        for name, i in ids.items()
        if i in raters
    }
    return accuracy, {pair: fit.posterior_UC[k] for k, pair in enumerate(shared)}


def against_others(
    cast: Sequence[Vote], choices: Choices, people: set[str]
) -> dict[str, list[tuple[str, float]]]:
    """annotator -> (time, 1 if the vote is the majority of the other people, else 0), by time.

    Pairs on which the others are equally divided are dropped; a tie counts 0.5.
    """
    hits: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for order, v in enumerate(cast):
        if v.judgement.kind == "repeat" or v.judgement.who == "gold":
            continue
        others = [c for w, c in choices[v.pair].items() if w != v.annotator and w in people]
        most = majority(others)
        if most is not None and most != TIE:
            when = v.judgement.at or f"~{order:012d}"
            hits[v.annotator].append((when, 0.5 if v.choice == TIE else float(v.choice == most)))
    return {name: sorted(by_time, key=lambda x: x[0]) for name, by_time in hits.items()}


def drift(hits: Sequence[tuple[str, float]], at_least: int = 20) -> Drift | None:
    """Agreement with the others in the later half minus that in the earlier half.

    None with fewer than ``at_least`` judgements per half.
    """
    hit_N = np.array([hit for _, hit in hits])
    size = len(hit_N) // 2
    if size < at_least:
        return None
    early, late = hit_N[:size], hit_N[size:]
    # One more hit and one more miss in each half (Agresti and Caffo 2000), so that the interval
    # has a width also without a miss.
    means = [(h.sum() + 1) / (len(h) + 2) for h in (early, late)]
    error = math.sqrt(
        sum(m * (1 - m) / (len(h) + 2) for m, h in zip(means, (early, late), strict=True))
    )
    centre, half = means[1] - means[0], 1.959964 * error
    value = float(late.mean() - early.mean())
    return Drift(value, centre - half, centre + half, float(2 * ndtr(-abs(centre) / error)))


def steadiness(cast: Sequence[Vote]) -> dict[str, Share | None]:
    """annotator -> share of repeated pairs (kind "repeat") with the same choice as at first."""
    first: dict[tuple[str, Pair], int] = {}
    same: dict[str, list[float]] = defaultdict(list)
    for v in cast:
        if v.judgement.kind != "repeat":
            first.setdefault((v.annotator, v.pair), v.choice)
    for v in cast:
        before = first.get((v.annotator, v.pair))
        if v.judgement.kind == "repeat" and before is not None:
            same[v.annotator].append(float(before == v.choice))
    return {name: Share.of(hits) for name, hits in same.items()}


def both_orders(cast: Sequence[Vote]) -> dict[str, BothOrders]:
    """annotator -> consistency and position bias on the pairs judged in both orders."""
    by_order: dict[tuple[str, Pair], dict[bool, int]] = defaultdict(dict)
    for v in cast:
        if v.judgement.kind != "repeat":
            by_order[v.annotator, v.pair].setdefault(v.a_shown_first, v.choice)
    outcomes: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for (name, _), choices in by_order.items():
        if len(choices) == 2:
            ab, ba = choices[True], choices[False]
            first_wins = [
                0.5 if c == TIE else float(c == winner) for c, winner in ((ab, FIRST), (ba, SECOND))
            ]
            outcomes[name].append((float(ab == ba), sum(first_wins) / 2))
    results: dict[str, BothOrders] = {}
    for name, pairs in outcomes.items():
        same = Share.of([s for s, _ in pairs])
        assert same is not None
        position = sum(f for _, f in pairs) / len(pairs) - 0.5
        results[name] = BothOrders(same.value, same.low, same.high, position, same.n)
    return results


def against_gold(
    choices: Choices, gold: Mapping[Pair, float], names: Sequence[str]
) -> dict[str, Share | None]:
    """annotator -> share of pairs with a gold winner on which they chose it, ties half."""
    hits: dict[str, list[float]] = {name: [] for name in names}
    for pair, gap in gold.items():
        for who, choice in choices.get(pair, {}).items():
            if gap and who in hits:
                hits[who].append(0.5 if choice == TIE else float((choice == FIRST) == (gap > 0)))
    return {name: Share.of(h) for name, h in hits.items() if h}


@dataclass(frozen=True, slots=True)
class CycleResult:
    """Cycles of each annotator; "" is the majority of all."""

    by_name: dict[str, Cycles]
    items: list[ItemCycles]
    """The items whose pairs are part of most of the annotators' cycles."""


def cycles(
    records: Records, cast: Sequence[Vote], names: Sequence[str], worst: int = 10
) -> CycleResult:
    """Contradictions of each annotator and of all together, among the completions of one prompt.

    A single ranking has no cycles: they arise from several items of one prompt.
    """
    by_name: dict[str, dict[str, list[Vote]]] = defaultdict(lambda: defaultdict(list))
    keys = {i: prompt_key(item) for i, item in records.items.items()}
    wanted = set(names)
    for v in cast:
        if v.annotator in wanted and v.judgement.kind != "repeat":
            by_name[v.annotator][keys[v.pair[0]]].append(v)
            by_name[""][keys[v.pair[0]]].append(v)
    item_counts: Counter[str] = Counter()
    results: dict[str, Cycles] = {}
    for name, by_prompt in by_name.items():
        total, triples, zetas = 0, 0, list[float]()
        for prompt_votes in by_prompt.values():
            result, items = _prompt_cycles(records, prompt_votes)
            total += len(result.cycles)
            triples += result.triples
            zetas += [result.zeta] if result.zeta is not None else []
            if name:
                item_counts.update(items)
        results[name] = Cycles(
            cycles=float(total),
            triples=float(triples),
            rate=total / triples if triples else None,
            zeta=float(np.mean(zetas)) if zetas else None,
        )
    return CycleResult(results, [ItemCycles(i, n) for i, n in item_counts.most_common(worst)])


def _prompt_cycles(records: Records, prompt_votes: Sequence[Vote]) -> tuple[Triads, Counter[str]]:
    """Cycles among the distinct completions of a prompt, and how many each item is part of."""
    ids: dict[str, int] = {}
    for v in prompt_votes:
        for k in v.pair[1:]:
            ids.setdefault(records.items[v.pair[0]].completions[k], len(ids))
    wins = np.zeros((len(ids), len(ids)))
    items: dict[tuple[int, int], set[str]] = defaultdict(set)
    for v in prompt_votes:
        item, a, b = v.pair
        i, j = (ids[records.items[item].completions[k]] for k in (a, b))
        if i != j and v.choice != TIE:
            i, j = (i, j) if v.choice == FIRST else (j, i)
            wins[i, j] += 1
            items[i, j].add(item)
    result = triads(wins)
    counts: Counter[str] = Counter()
    for a, b, c in result.cycles:
        counts.update(items[a, b] | items[b, c] | items[c, a])
    return result, counts
