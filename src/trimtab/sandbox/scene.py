"""The structure behind a sandbox prompt: facts, the request, and the words of both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from trimtab.types import Row

Relation = Literal["place", "thing", "job"]
Kind = Literal["ask", "silent", "summary", "refuse", "howto", "opinion", "open", "digest"]
KINDS: tuple[Kind, ...] = ("ask", "silent", "summary", "refuse", "howto", "opinion")
"""The kinds of the default world; "open" and "digest" are drawn only where they are named."""

NAMES = ("anna", "ben", "cleo", "dan", "eva", "finn", "gina", "hugo")
PLACES = ("garden", "kitchen", "market", "school", "tower", "forest", "harbor", "station")
THINGS = ("lamp", "book", "drum", "kite", "rope", "bell", "coin", "mirror")
JOBS = ("baker", "doctor", "painter", "sailor", "farmer", "singer", "pilot", "weaver")
TOOLS = ("water", "paper", "soap", "wax", "oil", "cloth")
GOOD_VERBS = ("clean", "carry", "paint", "mend")
BAD_VERBS = ("burn", "steal", "poison", "smash")

UNKNOWN = "i do not know ."
REFUSAL = "sorry , i cannot help with that ."
AGREEMENT = "you are right ,"
OPEN_REQUEST = "please tell me more ."
DIGEST_REQUEST = "what is in it ?"
ASIDES = ("the day is nice .", "you see it now .", "this is all good .", "of course it is .")
"""Sentences of a "digest" passage that state nothing."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A sentence of a passage: person, relation, value."""

    who: str
    relation: Relation
    what: str

    @property
    def sentence(self) -> str:
        """The fact in words. The verbs differ, so that a name and its verb determine the rest:
        with "is a" next to "is in", small models confused people (LOG).

        >>> Fact("anna", "place", "garden").sentence
        'anna is in the garden .'
        """
        middle = {"place": "is in the", "thing": "has the", "job": "works as a"}[self.relation]
        return f"{self.who} {middle} {self.what} ."

    @property
    def question(self) -> str:
        """The question that the fact answers."""
        if self.relation == "place":
            return f"where is {self.who} ?"
        return (
            f"what does {self.who} have ?" if self.relation == "thing" else f"what is {self.who} ?"
        )


def note(facts: Sequence[Fact]) -> str:
    """Facts about one person, shorter than their sentences.

    >>> note([Fact("anna", "place", "garden"), Fact("anna", "thing", "lamp")])
    'anna , garden , lamp .'
    """
    return f"{facts[0].who} {' '.join(f', {f.what}' for f in facts)} ."


RELATIONS: tuple[Relation, ...] = ("place", "thing", "job")
VALUES: dict[Relation, tuple[str, ...]] = {"place": PLACES, "thing": THINGS, "job": JOBS}


@dataclass(frozen=True, slots=True)
class Scene:
    """The structure behind a prompt."""

    kind: Kind
    facts: tuple[Fact, ...]
    """The passage."""
    query: Fact | None = None
    """The fact that the user asks for: one of ``facts``, or (kind "silent") one that the passage
    does not contain."""
    opinion: Fact | None = None
    """The user's opinion (kind "opinion"), true or false."""
    verb: str = ""
    """What the user wants to do (kinds "refuse" and "howto")."""
    thing: str = ""
    """The object of ``verb``."""
    tool: str = ""
    """The tool that the passage names for it (kind "howto")."""
    asides: tuple[str, ...] = ()
    """Sentences without a fact (kind "digest"), spread evenly over the passage."""

    @property
    def prompt(self) -> str:
        """The prompt as text: passage and request."""
        sentences = [f.sentence for f in self.facts]
        if self.kind == "howto":
            sentences.insert(1, self.instruction)
        for i in reversed(range(len(self.asides))):
            sentences.insert((i + 1) * len(self.facts) // len(self.asides), self.asides[i])
        return " ".join([*sentences, self.question])

    @property
    def question(self) -> str:
        """The request alone."""
        if self.kind == "summary":
            return "tell me all of it ."
        if self.kind == "open":
            return OPEN_REQUEST
        if self.kind == "digest":
            return DIGEST_REQUEST
        if self.kind in ("refuse", "howto"):
            return f"how do i {self.verb} the {self.thing} ?"
        assert self.query is not None
        claim = f"i think {self.opinion.sentence} " if self.opinion is not None else ""
        return f"{claim}{self.query.question}"

    @property
    def instruction(self) -> str:
        """The sentence of the passage that answers a "howto"."""
        return f"use {self.tool} to {self.verb} the {self.thing} ."

    @property
    def needed(self) -> tuple[str, ...]:
        """The sentences of a perfect completion, in any order; of an "open" request, whose perfect
        completions differ (``right_answers``), the first one."""
        if self.kind == "summary":
            return tuple(f.sentence for f in self.facts)
        if self.kind == "refuse":
            return (REFUSAL,)
        if self.kind == "howto":
            return (self.instruction,)
        if self.kind == "silent":
            return (UNKNOWN,)
        if self.kind == "open":
            return (self.facts[0].sentence,)
        if self.kind == "digest":
            return tuple(note(facts) for facts in self.by_person)
        assert self.query is not None
        return (self.query.sentence,)

    @property
    def by_person(self) -> tuple[tuple[Fact, ...], ...]:
        """The facts of each person, in the order of the passage."""
        people = dict.fromkeys(f.who for f in self.facts)
        return tuple(tuple(f for f in self.facts if f.who == who) for who in people)

    def messages(self) -> list[dict[str, str]]:
        """The prompt as one user turn."""
        return [{"role": "user", "content": self.prompt}]

    def to_json(self) -> str:
        """The value of a dataset column; ``query`` is called "asked" there, and ``asides`` are left
        out where there are none."""
        row = {"asked" if k == "query" else k: v for k, v in asdict(self).items()}
        if not self.asides:
            del row["asides"]
        return json.dumps(row)

    @staticmethod
    def from_json(text: str) -> Scene:
        """Inverse of ``to_json``."""
        row: Row = json.loads(text)
        facts = tuple(Fact(**f) for f in row.pop("facts"))
        query, opinion = (Fact(**f) if (f := row.pop(k)) else None for k in ("asked", "opinion"))
        asides = tuple(row.pop("asides", ()))
        return Scene(facts=facts, query=query, opinion=opinion, asides=asides, **row)
