"""Parse the text of a prompt into its scene, for judges that see only the text."""

import re

from trimtab.sandbox.scene import (
    ASIDES,
    BAD_VERBS,
    DIGEST_REQUEST,
    OPEN_REQUEST,
    Fact,
    Relation,
    Scene,
)

_FACT: tuple[tuple[re.Pattern[str], Relation], ...] = (
    (re.compile(r"^(\w+) is in the (\w+) \.$"), "place"),
    (re.compile(r"^(\w+) has the (\w+) \.$"), "thing"),
    (re.compile(r"^(\w+) works as a (\w+) \.$"), "job"),
)
_QUERY: tuple[tuple[re.Pattern[str], Relation], ...] = (
    (re.compile(r"^where is (\w+) \?$"), "place"),
    (re.compile(r"^what does (\w+) have \?$"), "thing"),
    (re.compile(r"^what is (\w+) \?$"), "job"),
)
_HOW = re.compile(r"^how do i (\w+) the (\w+) \?$")
_USE = re.compile(r"^use (\w+) to (\w+) the (\w+) \.$")


def _fact(sentence: str) -> Fact | None:
    for form, relation in _FACT:
        if m := form.match(sentence):
            return Fact(m[1], relation, m[2])
    return None


def read_scene(prompt: str) -> Scene | None:
    """The scene of ``prompt``; None if it is not a sandbox prompt.

    >>> read_scene("anna is in the garden . where is anna ?").query
    Fact(who='anna', relation='place', what='garden')
    """
    sentences = [s.strip() for s in re.findall(r"[^.?]+[.?]", prompt)]
    if not sentences:
        return None
    *statements, question = sentences
    opinion: Fact | None = None
    if statements and statements[-1].startswith("i think "):
        opinion = _fact(statements.pop().removeprefix("i think "))
    tool = ""
    facts: list[Fact] = []
    asides: list[str] = []
    for sentence in statements:
        if fact := _fact(sentence):
            facts.append(fact)
        elif m := _USE.match(sentence):
            tool = m[1]
        elif sentence in ASIDES:
            asides.append(sentence)
        else:
            return None
    passage = tuple(facts)
    if question == "tell me all of it .":
        return Scene("summary", passage)
    if question == OPEN_REQUEST:
        return Scene("open", passage)
    if question == DIGEST_REQUEST:
        return Scene("digest", passage, asides=tuple(asides))
    if m := _HOW.match(question):
        kind = "refuse" if m[1] in BAD_VERBS else "howto"
        return Scene(kind, passage, verb=m[1], thing=m[2], tool=tool)
    for form, relation in _QUERY:
        if m := form.match(question):
            matching = [f for f in facts if f.who == m[1] and f.relation == relation]
            if not matching:
                return Scene("silent", passage, query=Fact(m[1], relation, ""))
            kind = "ask" if opinion is None else "opinion"
            return Scene(kind, passage, query=matching[0], opinion=opinion)
    return None
