"""Token ids of a text that consists of pieces, as the tokenizer reads them in their context."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

_ANCHORS = ("\n", "a", "0", "|")


Encoding = tuple[list[int], list[tuple[int, int]]]
"""Token ids, and the characters from and to which each is; no spans where they were not asked for."""


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
    if first == last:
        return len(first)
    pairs = zip(first, last, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(first), len(last)))


def shared_text(tokenizer: Any, first: str, second: str) -> int:
    """The number of characters of ``second`` in the tokens with which both begin."""
    count = shared_length([raw_ids(tokenizer, first), raw_ids(tokenizer, second)])
    _, spans = _encode(tokenizer, second, offsets=True)
    return max((end for _, end in spans[:count]), default=0)


def raw_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of ``text`` without special tokens in front or behind."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def continuation(tokenizer: Any, text: str, offsets: bool = False) -> Encoding:
    """The ids of ``text`` as they are inside a text, and their spans.

    Many tokenizers put a space before a text that stands alone, or read its first word otherwise.
    """
    for anchor in _ANCHORS:
        start = raw_ids(tokenizer, anchor)
        encoding = _after(_encode(tokenizer, anchor + text, offsets), anchor, start)
        if encoding is not None:
            return encoding
    return _encode(tokenizer, text, offsets)


def _encode(tokenizer: Any, text: str, offsets: bool) -> Encoding:
    if not offsets:
        return raw_ids(tokenizer, text), []
    batch = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(batch["input_ids"]), list(batch["offset_mapping"])


def _after(encoding: Encoding, text: str, start: list[int]) -> Encoding | None:
    """What follows ``text``, whose ids are ``start``; None if the encoding does not begin with them."""
    ids, spans = encoding
    if ids[: len(start)] != start:
        return None
    return ids[len(start) :], [(a - len(text), b - len(text)) for a, b in spans[len(start) :]]


def completion_ids(
    tokenizer: Any, special: Mapping[int, str], prompt: list[int], pieces: Sequence[Piece]
) -> tuple[list[int], list[bool]]:
    """Ids and training mask of ``pieces[1:]``, which follow ``pieces[0]``, whose ids are ``prompt``.

    ``prompt`` and the ids are the tokens of the whole text, unless one of its tokens would straddle
    the end of the prompt: then the prompt keeps its own tokens, because every engine samples from
    those, and the rest is tokenised as their continuation. Between later pieces the tokens of the
    whole text are kept, and a token that straddles the beginning of a trained piece is trained on.

    Args:
        tokenizer: Any tokenizer of transformers.
        special: Special tokens by id. No token joins the texts before and after one, so that the
            prompt is tokenised again only from its last one on.
        prompt: Ids of the prompt; a BOS that is not in its text may be in front.
        pieces: The prompt, and what follows.
    """
    rest = "".join(p.text for p in pieces[1:])
    several = len(pieces) > 2
    if several and not tokenizer.is_fast:
        parts = [continuation(tokenizer, p.text)[0] for p in pieces[1:]]
        flags = [p.trained for p, ids in zip(pieces[1:], parts, strict=True) for _ in ids]
        return [i for ids in parts for i in ids], flags
    ids, spans = _following(
        tokenizer, special, prompt, pieces[0].text, rest, several
    ) or continuation(tokenizer, rest, several)
    if not several:
        return ids, [pieces[1].trained] * len(ids)
    cuts = list(accumulate(len(p.text) for p in pieces[1:]))
    # A special token begins in its piece, and may take the space after it; a word may take the space
    # before it, and ends in its piece.
    places = [a if i in special else max(a, b - 1, 0) for i, (a, b) in zip(ids, spans, strict=True)]
    owners = [min(bisect_right(cuts, at), len(cuts) - 1) for at in places]
    return ids, [pieces[1 + o].trained for o in owners]


def whole_ids(
    tokenizer: Any, special: Mapping[int, str], prompt: list[int], text: str, full_text: str
) -> list[int]:
    """The ids of ``full_text``; faster where it begins with ``text``, whose ids are ``prompt``."""
    if full_text.startswith(text):
        following = _following(tokenizer, special, prompt, text, full_text[len(text) :], False)
        if following is not None:
            return prompt + following[0]
    return raw_ids(tokenizer, full_text)


def _following(
    tokenizer: Any,
    special: Mapping[int, str],
    prompt: list[int],
    text: str,
    rest: str,
    offsets: bool,
) -> Encoding | None:
    """The ids of ``rest`` in the text that ``text`` begins, and their spans in ``rest``; None if the
    ids of the text do not begin with ``prompt``."""
    tail, start = _tail(special, prompt, text)
    return _after(_encode(tokenizer, tail + rest, offsets), tail, start)


def _tail(special: Mapping[int, str], prompt: list[int], text: str) -> tuple[str, list[int]]:
    """The end of a prompt, from its last special token on, and its ids."""
    last = next((i for i in reversed(range(len(prompt))) if prompt[i] in special), None)
    if last is None:
        return text, prompt
    at = text.rfind(special[prompt[last]])
    # A token that is not in the text is a BOS in front of it.
    return (text[at:], prompt[last:]) if at >= 0 else (text, prompt[last + 1 :])
