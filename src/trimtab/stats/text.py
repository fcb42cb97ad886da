"""How varied texts are (ALGORITHMS section 14). Fix the number and length of texts to compare."""

from __future__ import annotations

from collections.abc import Sequence


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different n-grams over all n-grams of the texts, words split at spaces; 0 without any.

    >>> distinct_n(["a b a b"], 1)
    0.5
    """
    grams = [tuple(w[i : i + n]) for w in (t.split() for t in texts) for i in range(len(w) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
