"""How varied texts are (ALGORITHMS section 14). Fix the number and length of texts to compare."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Sequence


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different n-grams over all n-grams of the texts, words split at spaces; 0 without any.

    >>> distinct_n(["a b a b"], 1)
    0.5
    """
    grams = [tuple(w[i : i + n]) for w in (t.split() for t in texts) for i in range(len(w) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def ngram_entropy(texts: Sequence[str], n: int) -> float:
    """Entropy, nats, of the n-grams of the texts; 0 without any.

    >>> round(ngram_entropy(["a b a b"], 2), 6)
    0.636514
    """
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        counts.update(_grams(text.split(), n))
    total = sum(counts.values())
    return -sum(k / total * math.log(k / total) for k in counts.values())


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def bleu(text: str, others: Sequence[str], n: int = 4) -> float:
    """BLEU of a text against references (Papineni et al. 2002), words split at spaces.

    Orders go up to ``n`` or the text's length; an order without a match counts as a tenth of one
    match, so that a short text is not 0 at once (Chen and Cherry 2014, method 1).
    """
    words = text.split()
    if not words or not others:
        return 0.0
    split = [o.split() for o in others]
    logs: list[float] = []
    for order in range(1, min(n, len(words)) + 1):
        mine = _grams(words, order)
        most: Counter[tuple[str, ...]] = Counter()
        for other in split:
            most |= _grams(other, order)
        matched = (mine & most).total()
        if order == 1 and not matched:
            return 0.0
        logs.append(math.log((matched or 0.1) / mine.total()))
    nearest = min((len(o) for o in split), key=lambda k: (abs(k - len(words)), k))
    brevity = min(0.0, 1.0 - nearest / len(words))
    return math.exp(sum(logs) / len(logs) + brevity)


def self_bleu(texts: Sequence[str], n: int = 4) -> float:
    """Mean BLEU of each sample against the others of its prompt (1802.01886): 1 is all alike.

    >>> self_bleu(["a b c d", "a b c d"])
    1.0
    """
    scores = [bleu(t, [*texts[:i], *texts[i + 1 :]], n) for i, t in enumerate(texts)]
    return sum(scores) / len(scores) if scores else 0.0


def compression_ratio(texts: Sequence[str]) -> float:
    """Bytes of all texts over their bytes when deflated: the higher, the more repetitive."""
    data = "\n".join(texts).encode("utf-8", "surrogatepass")
    return len(data) / len(zlib.compress(data, 9))
