"""The right completions of a prompt, enumerated: what diversity among good completions is counted on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

from trimtab.sandbox.scene import Fact, Scene, note

Style = Literal["sentence", "note", "question"]
STYLES: tuple[Style, ...] = ("sentence", "note", "question")
"""Wordings of a fact that are equally right in reply to an "open" request."""


def styled(fact: Fact, style: Style) -> str:
    """A fact in one of the styles.

    >>> styled(Fact("anna", "place", "garden"), "question")
    'where is anna ? in the garden .'
    """
    if style == "sentence":
        return fact.sentence
    if style == "note":
        return note([fact])
    short = {"place": "in the", "thing": "the", "job": "a"}[fact.relation]
    return f"{fact.question} {short} {fact.what} ."


def bare(text: str) -> tuple[str, ...]:
    """The words of a completion in lower case, without one full stop at the end."""
    words = tuple(text.lower().split())
    return words[:-1] if words[-1:] == (".",) else words


def right_answers(scene: Scene) -> frozenset[str]:
    """Every right completion.

    Of "open" and "digest" these are exactly the texts with a gold score of 1, apart from the case
    of letters and the full stop at the end. An "open" prompt about N facts has 3 N, a "digest" of
    P people with 3 facts each has P! 6^P. The other kinds have the needed sentences in any order.

    >>> len(right_answers(Scene("open", (Fact("anna", "place", "garden"), Fact("ben", "thing", "lamp")))))
    6
    """
    if scene.kind == "open":
        return frozenset(styled(f, style) for f in scene.facts for style in STYLES)
    if scene.kind == "digest":
        notes = [[note(p) for p in itertools.permutations(facts)] for facts in scene.by_person]
        orders = itertools.permutations(notes)
        return frozenset(" ".join(c) for order in orders for c in itertools.product(*order))
    return frozenset(" ".join(p) for p in itertools.permutations(scene.needed))


def count_right(scene: Scene) -> int:
    """``len(right_answers(scene))`` without the enumeration."""
    if scene.kind == "open":
        return len(scene.facts) * len(STYLES)
    if scene.kind == "digest":
        people = scene.by_person
        return math.factorial(len(people)) * math.prod(math.factorial(len(p)) for p in people)
    return math.factorial(len(scene.needed))


def style_of(scene: Scene, text: str) -> Style | None:
    """The style of the right answer that an "open" completion contains, the first one in the order of
    ``STYLES``; None if it contains none, and for other kinds."""
    if scene.kind != "open":
        return None
    words = tuple(text.lower().split())
    for style in STYLES:
        if any(contains(words, bare(styled(f, style))) for f in scene.facts):
            return style
    return None


def contains(words: Sequence[str], part: Sequence[str]) -> bool:
    """Whether ``part`` occurs in ``words`` as consecutive words."""
    size = len(part)
    return any(tuple(words[i : i + size]) == tuple(part) for i in range(len(words) - size + 1))


def style_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    scene: Sequence[str],
    style: Style = "sentence",
    **_: Any,
) -> list[float]:
    """1 for an "open" completion in this style, else 0: the mean is the share of the style."""
    return [
        float(style_of(Scene.from_json(s), c) == style)
        for s, c in zip(scene, completions, strict=True)
    ]
