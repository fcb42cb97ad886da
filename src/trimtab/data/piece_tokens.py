"""Token ids of a text that consists of pieces, as the tokenizer reads them in their context."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

_ANCHORS = ("\n", "a", "0", "|")


@dataclass(slots=True)
class Piece:
    """A part of a rendered text."""

    text: str
    trained: bool
    """Whether the model is trained to emit it."""


def shared_length(sequences: Sequence[str] | Sequence[list[int]]) -> int:
    """The number of items with which all ``sequences`` begin.

    >>> shared_length(["chat", "char", "cha"])
    3
    """
    first, last = min(sequences), max(sequences)
    pairs = zip(first, last, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(first), len(last)))


def shared_text(tokenizer: Any, first: str, second: str) -> int:
    """The number of characters of ``second`` in the tokens with which both begin."""
    count = shared_length([raw_ids(tokenizer, first), raw_ids(tokenizer, second)])
    _, ends = _encode(tokenizer, second, offsets=True)
    return max(ends[:count], default=0)


def raw_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of ``text`` without special tokens in front or behind."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def continuation(tokenizer: Any, text: str, offsets: bool = False) -> tuple[list[int], list[int]]:
    """The ids of ``text`` as they are inside a text, and where each ends (characters).

    Many tokenizers put a space before a text that stands alone, or read its first word otherwise.
    """
    for anchor in _ANCHORS:
        start = raw_ids(tokenizer, anchor)
        ids, ends = _encode(tokenizer, anchor + text, offsets)
        if ids[: len(start)] == start:
            return ids[len(start) :], [e - len(anchor) for e in ends[len(start) :]]
    return _encode(tokenizer, text, offsets)


def _encode(tokenizer: Any, text: str, offsets: bool) -> tuple[list[int], list[int]]:
    if not offsets:
        return raw_ids(tokenizer, text), []
    batch = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(batch["input_ids"]), [end for _, end in batch["offset_mapping"]]


def completion_ids(
    tokenizer: Any, prompt: Sequence[int], pieces: Sequence[Piece]
) -> tuple[list[int], list[bool]]:
    """Ids and training mask of ``pieces[1:]``, which follow ``pieces[0]``, whose ids are ``prompt``.

    ``prompt`` and the ids are the tokens of the whole text, unless one of its tokens would straddle
    the end of the prompt: then the prompt keeps its own tokens, because every engine samples from
    those, and the rest is tokenised as their continuation. Between later pieces the tokens of the
    whole text are kept, and a token that straddles the beginning of a trained piece is trained on.
    """
    rest = "".join(p.text for p in pieces[1:])
    several = len(pieces) > 2
    if several and not tokenizer.is_fast:
        parts = [continuation(tokenizer, p.text)[0] for p in pieces[1:]]
        flags = [p.trained for p, ids in zip(pieces[1:], parts, strict=True) for _ in ids]
        return [i for ids in parts for i in ids], flags
    # The tokenizer adds no special tokens here, so a BOS in front of a plain prompt is not in it.
    raw = raw_ids(tokenizer, pieces[0].text)
    ids, ends = _encode(tokenizer, pieces[0].text + rest, several)
    if ids[: len(raw)] == raw and list(prompt[len(prompt) - len(raw) :]) == raw:
        ids, ends = ids[len(raw) :], [e - len(pieces[0].text) for e in ends[len(raw) :]]
    else:
        ids, ends = continuation(tokenizer, rest, several)
    if not several:
        return ids, [pieces[1].trained] * len(ids)
    cuts = list(accumulate(len(p.text) for p in pieces[1:]))
    owners = [min(bisect_right(cuts, max(e - 1, 0)), len(cuts) - 1) for e in ends]
    return ids, [pieces[1 + o].trained for o in owners]
