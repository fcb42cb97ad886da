"""Statistics of tokenised data that predict training problems, computed before the first step."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Sequence

from trimtab.types import Completion, Group

_NOT_WORDS = re.compile(r"\W+")


def token_facts(
    groups: Sequence[Group], bos: int | None, stops: Collection[int]
) -> dict[str, float]:
    """Beginnings and ends: number of "prompts", share with two BOS in front ("double_bos"), number of
    completions ("answers"), share of completions truncated to the length limit ("cut"), and share
    whose last trained token is no stop token ("without_end"): a model trained on them never learns to
    stop.

    Args:
        bos: The beginning-of-sequence token, if there is one.
        stops: Tokens that end a completion.
    """
    done = [c for g in groups for c in g.completions]
    doubled = sum(bos is not None and g.prompt[:2].tolist() == [bos, bos] for g in groups)
    facts = {
        "prompts": float(len(groups)),
        "double_bos": doubled / max(1, len(groups)),
        "answers": float(len(done)),
    }
    if done:
        facts["without_end"] = sum(not _ends(c, stops) for c in done) / len(done)
        facts["cut"] = sum(c.finish == "length" for c in done) / len(done)
    return facts


def _ends(c: Completion, stops: Collection[int]) -> bool:
    trained = c.ids[c.mask]
    return len(trained) > 0 and int(trained[-1]) in stops


def normal(text: str) -> str:
    """Lower-case words without punctuation: equal for near-duplicates.

    >>> normal("It is  here, is it?")
    'it is here is it'
    """
    return " ".join(_NOT_WORDS.split(text.lower())).strip()


def equal_texts(a: str, b: str) -> bool:
    """Whether two texts differ in white space at most."""
    return a.split() == b.split()


def pair_facts(groups: Sequence[Group]) -> dict[str, float]:
    """Inconsistencies and biases of comparisons.

    Returns:
        "pairs" (ranked apart), "ties" (share of all compared), "contradicted" (share of pairs whose
        opposite is there too), "repeated" (share judged more than once, with any outcome),
        "chosen_longer" and "chosen_first" (shares, of pairs that differ in length or carry the order
        shown in the column "shown"; 1/2 is fair), "same" (share whose two completions are the same).
    """
    orders: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    pairs = ties = same = longer = sized = first = placed = 0
    for g in groups:
        prompt = normal(g.text)
        positions = g.extra.get("shown")
        for i, a in enumerate(g.completions):
            for j in range(i + 1, len(g.completions)):
                b = g.completions[j]
                if a.rank is None or b.rank is None:
                    continue
                if a.rank == b.rank:
                    ties += 1
                    continue
                pairs += 1
                won, lost = (i, j) if a.rank < b.rank else (j, i)
                x, y = normal(g.completions[won].text), normal(g.completions[lost].text)
                # A preference may be about case or punctuation alone.
                same += equal_texts(g.completions[won].text, g.completions[lost].text)
                orders[(prompt, min(x, y), max(x, y))].append(1 if x <= y else -1)
                gap = len(g.completions[won]) - len(g.completions[lost])
                sized += gap != 0
                longer += gap > 0
                if isinstance(positions, list):
                    placed += 1
                    first += positions.index(won) < positions.index(lost)
    against = sum(2 * min(v.count(1), v.count(-1)) for (_, a, b), v in orders.items() if a != b)
    facts = {
        "pairs": float(pairs),
        "ties": ties / max(1, pairs + ties),
        "contradicted": against / max(1, pairs),
        "repeated": sum(len(v) for v in orders.values() if len(v) > 1) / max(1, pairs),
        "same": same / max(1, pairs),
    }
    if sized:
        facts |= {"sized": float(sized), "chosen_longer": longer / sized}
    if placed:
        facts |= {"placed": float(placed), "chosen_first": first / placed}
    return facts


def leaked(train: Sequence[Group], held_out: Sequence[Group]) -> float:
    """Share of held-out groups whose prompt and completions are also trained on, ignoring case,
    punctuation and white space."""

    def key(g: Group) -> tuple[str, ...]:
        return (normal(g.text), *sorted({normal(c.text) for c in g.completions}))

    trained = {key(g) for g in train}
    return sum(key(g) in trained for g in held_out) / len(held_out) if held_out else 0.0


def odd_pairs(groups: Sequence[Group], most: int = 5) -> list[dict[str, str]]:
    """Examples of contradicted pairs: the prompt, and two completions that were each chosen once."""
    orders: dict[tuple[str, str, str], set[bool]] = defaultdict(set)
    pairs: list[dict[str, str]] = []
    for g in groups:
        ranked = [c for c in g.completions if c.rank is not None]
        for i, a in enumerate(ranked):
            for b in ranked[i + 1 :]:
                if a.rank == b.rank or a.text == b.text:
                    continue
                assert a.rank is not None and b.rank is not None
                up = a.text if a.rank < b.rank else b.text
                x, y = sorted((a.text, b.text), key=normal)
                key = (normal(g.text), normal(x), normal(y))
                orders[key].add(up == x)
                if len(orders[key]) == 2 and len(pairs) < most:
                    pairs.append({"prompt": g.text, "answer": f"{x}\n--- against ---\n{y}"})
                    orders[key].clear()
    return pairs
