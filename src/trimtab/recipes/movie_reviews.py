"""What recipes/movie-reviews.yaml needs: its files from the reviews, and an independent judge.

Data: the sentence polarity set of Pang and Lee (2005), as ``movie-reviews-pos.txt.gz`` and
``movie-reviews-neg.txt.gz``, one review sentence a line.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.data.sources import read
from trimtab.runs import write_atomic
from trimtab.types import Row

START = "review:"
"""Every prompt begins so; for RL and the comparison, a few words of a real review follow."""
JUDGE, HELD = 2000, 300
"""Rows a class for the judge alone, and for evaluation alone."""


@lru_cache
def rows(data: str, seed: int = 0) -> dict[str, tuple[list[str], list[str]]]:
    """(positive, negative) sentences by use: "judge", "held" and "train" share no row."""
    parts: dict[str, list[list[str]]] = {"judge": [], "held": [], "train": []}
    for label in ("pos", "neg"):
        texts = [r["text"].strip() for _, r in read(f"{data}/movie-reviews-{label}.txt.gz").rows]
        texts = [texts[i] for i in np.random.default_rng(seed).permutation(len(texts))]
        parts["judge"].append(texts[:JUDGE])
        parts["held"].append(texts[JUDGE : JUDGE + HELD])
        parts["train"].append(texts[JUDGE + HELD :])
    return {use: (both[0], both[1]) for use, both in parts.items()}


def prepare(
    out: Path, data: str, words: int = 3, pairs: int = 3, seed: int = 0
) -> dict[str, float]:
    """Write sentences.jsonl, pairs.jsonl, prompts.jsonl, heldpairs.jsonl and heldout.jsonl.

    Args:
        words: Of a real review, at the start of each prompt.
        pairs: Negative sentences each positive one is preferred to.
        seed: Of the split and the pairing.
    """
    parts = rows(data, seed)
    rng = np.random.default_rng(seed)

    def write(name: str, rows_to_write: list[Row]) -> None:
        shuffled = [rows_to_write[i] for i in rng.permutation(len(rows_to_write))]
        write_atomic(out / name, "".join(json.dumps(r) + "\n" for r in shuffled).encode())

    def openings(texts: list[str]) -> list[Row]:
        return [{"prompt": " ".join([START, *t.split()[:words]])} for t in texts]

    good, bad = parts["train"]
    write("sentences.jsonl", [{"prompt": START, "completion": f" {t}"} for t in good + bad])
    ranked = [
        {"prompt": START, "chosen": f" {t}", "rejected": f" {bad[i]}"}
        for t in good
        for i in rng.choice(len(bad), pairs)
    ]
    write("pairs.jsonl", ranked)
    write("prompts.jsonl", openings(good + bad))
    unseen_texts = parts["held"]
    # No sentence of these is in a training pair, and none comes twice: each is a draw of its own.
    unseen = [
        {"prompt": START, "chosen": f" {a}", "rejected": f" {b}"}
        for a, b in zip(*unseen_texts, strict=True)
    ]
    write("heldpairs.jsonl", unseen)
    write("heldout.jsonl", openings(unseen_texts[0] + unseen_texts[1]))
    predicted = judge(data, seed).predict_proba(unseen_texts[0] + unseen_texts[1])[:, 1] > 0.5
    truth = np.arange(2 * HELD) < HELD
    return {
        "sentences": len(good + bad),
        "pairs": len(ranked),
        "judge_accuracy": float((predicted == truth).mean()),
    }


@lru_cache
def judge(data: str, seed: int = 0) -> Any:
    """TF-IDF and logistic regression on rows that nothing else sees."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    good, bad = rows(data, seed)["judge"]
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(C=10.0))
    return model.fit(good + bad, [1] * len(good) + [0] * len(bad))


def positive(
    prompts: list[str], completions: list[str], data: str, seed: int = 0, **_: Any
) -> list[float]:
    """1 where the judge calls the whole sentence positive, else 0."""
    texts = [
        f"{p.removeprefix(START)} {c}".strip() for p, c in zip(prompts, completions, strict=True)
    ]
    return [float(p > 0.5) for p in judge(data, seed).predict_proba(texts)[:, 1]]
