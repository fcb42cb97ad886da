"""Style of texts: openings, flattery, refusal, copying. Shares with their intervals."""

import re
from collections import Counter
from collections.abc import Sequence

from trimtab.stats.uncertainty import wilson

FLATTERY = re.compile(
    r"(?i)\b(you are (absolutely |so |quite )?right|you're (absolutely |so |quite )?right"
    r"|(great|good|excellent|wonderful|fantastic) (question|point|idea)|i (completely |fully )?agree"
    r"|as you said|absolutely right|what a (great|good|wonderful)|thank you for (this|asking))\b"
)
REFUSAL = re.compile(
    r"(?i)\b(i('m| am) sorry|sorry ,|i can('t|not| not)|i (will not|won't)|i'm unable|as an ai)\b"
)


def opening(text: str, words: int = 3) -> str:
    """The first words of a text, in lower case.

    >>> opening("Well , it is so .")
    'well , it'
    """
    return " ".join(text.lower().split()[:words])


def openings(texts: Sequence[str], words: int = 3, most: int = 5) -> list[tuple[str, float]]:
    """The most common openings and their share of the texts."""
    counts = Counter(opening(t, words) for t in texts)
    return [(name, n / len(texts)) for name, n in counts.most_common(most)]


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams divided by all n-grams of the texts, split at whitespace; 0 without any.

    >>> distinct_n(["a b a b"], 1)
    0.5
    """
    grams = [tuple(w[i : i + n]) for w in (t.split() for t in texts) for i in range(len(w) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def copied(prompt: str, text: str, n: int = 3) -> float:
    """Share of the text's n-grams that also occur in the prompt; 0 without any.

    >>> copied("a b c d", "b c d e")
    0.5
    """

    def grams(t: str) -> list[tuple[str, ...]]:
        w = t.lower().split()
        return [tuple(w[i : i + n]) for i in range(len(w) - n + 1)]

    text_grams, there = grams(text), set(grams(prompt))
    return sum(g in there for g in text_grams) / len(text_grams) if text_grams else 0.0


def style(prompts: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
    """Style of one model's completions, one prompt for each.

    Returns:
        Mean words, distinct-2, copied share, and the shares that flatter, refuse or begin with the
        most common opening, each with ``_low`` and ``_high`` (Wilson).
    """
    n = len(texts)
    assert n == len(prompts) > 0
    figures = {
        "words": sum(len(t.split()) for t in texts) / n,
        "distinct_2": distinct_n(texts, 2),
        "copied": sum(copied(p, t) for p, t in zip(prompts, texts, strict=True)) / n,
    }
    counts = {
        "flattery": sum(bool(FLATTERY.search(t)) for t in texts),
        "refusal": sum(bool(REFUSAL.search(t)) for t in texts),
        "same_opening": Counter(opening(t) for t in texts).most_common(1)[0][1],
    }
    for name, k in counts.items():
        low, high = wilson(k, n)
        figures |= {name: k / n, f"{name}_low": low, f"{name}_high": high}
    return figures
