"""Demonstrations of instructions: a fluent text is edited until it satisfies constraints.

The texts may be a model's own answers to the bare tasks. A demonstration then differs from what the
model writes anyway in the constraints alone, and needs no data from outside.
"""

import json
import re
from collections.abc import Callable

import numpy as np

from trimtab.sandbox.instructions import (
    CONSTRAINTS,
    Values,
    draw_types,
    instruction,
    satisfied,
)
from trimtab.types import Row

Edit = Callable[[str, np.random.Generator, str], tuple[str, Values]]
"""(text, random stream, topic) -> the edited text, and the values of the constraint it satisfies."""
_ORDER = ("length", "content", "edge", "letters")
"""Of the families' edits: letters last, since the others add words."""


def _sentences(text: str) -> list[str]:
    return re.findall(r"\S[^.!?]*[.!?]+", " ".join(text.split()))


def _draw(name: str, rng: np.random.Generator) -> Values:
    return CONSTRAINTS[name].draw(rng)


def _first_sentences(text: str, rng: np.random.Generator, topic: str) -> tuple[str, Values]:
    sentences = _sentences(text)[: _draw("sentences", rng)["n"]]
    return " ".join(sentences) if len(sentences) > 1 else "", {"n": len(sentences)}


def _few_words(text: str, rng: np.random.Generator, topic: str) -> tuple[str, Values]:
    values = _draw("most_words", rng)
    short = ""
    for sentence in _sentences(text):
        if len(f"{short} {sentence}".split()) >= values["n"]:
            break
        short = f"{short} {sentence}".strip()
    return short, values


def _bullets(text: str, rng: np.random.Generator, topic: str) -> tuple[str, Values]:
    sentences = _sentences(text)[: _draw("bullets", rng)["n"]]
    items = "\n".join(f"- {s}" for s in sentences)
    return items if len(sentences) > 1 else "", {"n": len(sentences)}


def _json(text: str, rng: np.random.Generator, topic: str) -> tuple[str, Values]:
    values = _draw("json", rng)
    first, second = values["keys"]
    return json.dumps({first: topic.capitalize(), second: _sentences(text)[0]}), values


def _keywords(text: str, rng: np.random.Generator, topic: str) -> tuple[str, Values]:
    words = sorted(set(re.findall(r"\b[a-z]{5,}\b", text)))
    chosen = [words[i] for i in rng.permutation(len(words))[:2]]
    return text if len(chosen) == 2 else "", {"words": chosen}


def _without_commas(text: str, rng: np.random.Generator, topic: str) -> tuple[str, Values]:
    return " ".join(s for s in _sentences(text) if "," not in s), {}


def _without_word(text: str, rng: np.random.Generator, topic: str) -> tuple[str, Values]:
    values = _draw("forbidden", rng)
    here = {"type": "forbidden", **values}
    return " ".join(s for s in _sentences(text) if satisfied(s, here)), values


def _with_start(text: str, rng: np.random.Generator, topic: str) -> tuple[str, Values]:
    values = _draw("starts", rng)
    return f"{values['text']}, {text[:1].lower()}{text[1:]}", values


def _with_end(text: str, rng: np.random.Generator, topic: str) -> tuple[str, Values]:
    values = _draw("ends", rng)
    return f"{text} {values['text']}", values


EDITS: dict[str, Edit] = {
    "sentences": _first_sentences,
    "most_words": _few_words,
    "bullets": _bullets,
    "json": _json,
    "keywords": _keywords,
    "no_commas": _without_commas,
    "forbidden": _without_word,
    "starts": _with_start,
    "ends": _with_end,
    "lowercase": lambda text, rng, topic: (text.lower(), {}),
    "uppercase": lambda text, rng, topic: (text.upper(), {}),
}


def demonstration(
    task: str, topic: str, text: str, rng: np.random.Generator, tries: int = 20
) -> Row | None:
    """An instruction about a task, and ``text`` edited to satisfy it, as ``prompt`` and
    ``completion``; None if ``tries`` draws of constraints do not fit the text."""
    text = " ".join(_sentences(text))
    if not text:
        return None
    for _ in range(tries):
        names = sorted(draw_types(rng), key=lambda n: _ORDER.index(CONSTRAINTS[n].family))
        edited = text
        constraints: list[Values] = []
        for name in names:
            edited, values = EDITS[name](edited, rng, topic)
            if not edited:
                break
            constraints.append({"type": name, **values})
        if len(constraints) == len(names) and all(satisfied(edited, c) for c in constraints):
            completion = [{"role": "assistant", "content": edited}]
            return {**instruction(task, constraints, rng), "completion": completion}
    return None
