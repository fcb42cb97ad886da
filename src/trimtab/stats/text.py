"""Diversity of texts (ALGORITHMS section 14). Compare equal numbers of texts of similar length."""

from __future__ import annotations

from collections.abc import Sequence


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams divided by all n-grams of the texts, split at whitespace; 0 without any.

    >>> distinct_n(["a b a b"], 1)
    0.5
    """
    grams = [tuple(w[i : i + n]) for w in (t.split() for t in texts) for i in range(len(w) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
