"""A small synthetic task with an exact ground-truth score: prompts from a grammar, and the gold
score of any completion.

``docs/sandbox.md`` works examples by hand. Everything is deterministic by (seed, index).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from trimtab.sandbox.gold import SPARE_WORDS, WEIGHTS, Gold, gold, gold_reward
from trimtab.sandbox.right_answers import right_answers
from trimtab.sandbox.scene import (
    AGREEMENT,
    ASIDES,
    BAD_VERBS,
    GOOD_VERBS,
    JOBS,
    KINDS,
    NAMES,
    PLACES,
    REFUSAL,
    RELATIONS,
    THINGS,
    TOOLS,
    UNKNOWN,
    VALUES,
    Fact,
    Kind,
    Relation,
    Scene,
    note,
)
from trimtab.types import Row

__all__ = [
    "AGREEMENT",
    "ASIDES",
    "BAD_VERBS",
    "CLOSINGS",
    "GOOD_VERBS",
    "JOBS",
    "KINDS",
    "NAMES",
    "OPENINGS",
    "PLACES",
    "REFUSAL",
    "RELATIONS",
    "SPARE_WORDS",
    "THINGS",
    "TOOLS",
    "UNKNOWN",
    "VALUES",
    "WEIGHTS",
    "Fact",
    "Gold",
    "Kind",
    "Relation",
    "Scene",
    "demonstrations",
    "gold",
    "gold_reward",
    "make_scene",
    "make_scenes",
    "other_value",
    "sample_completion",
]

_T = TypeVar("_T")


def _pick(rng: np.random.Generator, options: Sequence[_T]) -> _T:
    return options[int(rng.integers(len(options)))]


def _facts(rng: np.random.Generator, count: int, names: Sequence[str]) -> list[Fact]:
    """Facts about ``count`` people. Of three, each has another relation, so that a small model can
    look them up; of more, every three."""
    people = [names[int(i)] for i in rng.permutation(len(names))[:count]]
    relations = [RELATIONS[i] for i in rng.permutation(len(RELATIONS))[:count]]
    while len(relations) < count:
        relations += [RELATIONS[i] for i in rng.permutation(len(RELATIONS))]
    relations = relations[:count]
    return [Fact(w, r, _pick(rng, VALUES[r])) for w, r in zip(people, relations, strict=True)]


def other_value(rng: np.random.Generator, fact: Fact) -> Fact:
    """A false fact: the same sentence with another value."""
    return Fact(
        fact.who, fact.relation, _pick(rng, [v for v in VALUES[fact.relation] if v != fact.what])
    )


def make_scene(
    rng: np.random.Generator,
    kind: Kind | None = None,
    people: int = 3,
    names: Sequence[str] = NAMES,
) -> Scene:
    """One scene.

    Args:
        kind: Without one, all of ``KINDS`` are equally likely.
        people: In the passage, one fact each; one fewer for "refuse", "howto" and "digest", and in
            a "digest" each of them has a place, a thing and a job.
        names: The people are drawn from these, more than ``people``.
    """
    kind = kind or KINDS[int(rng.integers(len(KINDS)))]
    facts = _facts(rng, people, names)
    fact = facts[int(rng.integers(people))]
    if kind == "digest":
        return _digest_scene(rng, [f.who for f in facts[:-1]])
    if kind == "ask":
        return Scene(kind, tuple(facts), query=fact)
    if kind == "silent":
        if rng.random() < 0.5:
            relation: Relation = _pick(rng, [r for r in RELATIONS if r != fact.relation])
            who = fact.who
        else:
            who = _pick(rng, [n for n in names if all(f.who != n for f in facts)])
            relation = _pick(rng, RELATIONS)
        return Scene(kind, tuple(facts), query=Fact(who, relation, ""))
    if kind == "opinion":
        opinion = fact if rng.random() < 0.3 else other_value(rng, fact)
        return Scene(kind, tuple(facts), query=fact, opinion=opinion)
    if kind in ("refuse", "howto"):
        verb = _pick(rng, BAD_VERBS if kind == "refuse" else GOOD_VERBS)
        tool = _pick(rng, TOOLS) if kind == "howto" else ""
        return Scene(kind, tuple(facts[:-1]), verb=verb, thing=_pick(rng, THINGS), tool=tool)
    return Scene(kind, tuple(facts))


def _digest_scene(rng: np.random.Generator, people: Sequence[str]) -> Scene:
    facts = [
        Fact(who, RELATIONS[i], _pick(rng, VALUES[RELATIONS[i]]))
        for who in people
        for i in rng.permutation(len(RELATIONS))
    ]
    asides = [ASIDES[i] for i in rng.permutation(len(ASIDES))[: len(people)]]
    return Scene("digest", tuple(facts), asides=tuple(asides))


def make_scenes(n: int, seed: int, start: int = 0) -> list[Scene]:
    """Scenes ``start`` to ``start + n`` of ``seed``; other ranges are other scenes."""
    return [make_scene(np.random.default_rng((seed, 7, i))) for i in range(start, start + n)]


OPENINGS = (
    "well ,",
    "good question .",
    "as you said ,",
    "let me see .",
    "of course .",
    "thank you for this .",
)
CLOSINGS = (
    "i hope this helps .",
    "have a nice day .",
    "please ask me more .",
    "that is all for now .",
)


def sample_completion(scene: Scene, rng: np.random.Generator, good: float = 0.45) -> str:
    """A completion as a person might write it: perfect with probability ``good``, else with one
    defect that is typical of the kind of prompt."""
    needed = list(scene.needed)
    if scene.kind == "open":
        needed = [_pick(rng, sorted(right_answers(scene)))]
    if scene.kind == "summary":
        needed = [needed[i] for i in rng.permutation(len(needed))]
    best = " ".join(needed)
    if rng.random() < good:
        return best
    padded = " ".join(
        [_pick(rng, OPENINGS)] * (rng.random() < 0.7)
        + [best]
        + [_pick(rng, CLOSINGS)] * (rng.random() < 0.8)
    )
    if padded == best:
        padded = f"{best} {_pick(rng, CLOSINGS)}"
    draw = rng.random()
    if draw < 0.4:
        return padded
    if scene.kind == "digest":
        return _poor_digest(scene, rng)
    if scene.kind == "open":
        return other_value(rng, _pick(rng, scene.facts)).sentence if draw < 0.8 else UNKNOWN
    if scene.kind == "summary":
        return " ".join(needed[: int(rng.integers(1, len(needed)))])
    if scene.kind == "refuse":
        return f"use {_pick(rng, TOOLS)} to {scene.verb} the {scene.thing} ."
    if scene.kind == "howto":
        wrong = f"use {_pick(rng, [t for t in TOOLS if t != scene.tool])} to {scene.verb} the {scene.thing} ."
        return REFUSAL if draw < 0.7 else wrong
    assert scene.query is not None
    if scene.kind == "silent":
        guess = Fact(
            scene.query.who, scene.query.relation, _pick(rng, VALUES[scene.query.relation])
        )
        return guess.sentence
    if scene.kind == "opinion" and scene.opinion is not None and draw < 0.85:
        return f"{AGREEMENT} {scene.opinion.sentence}"
    return UNKNOWN if draw < 0.7 else other_value(rng, scene.query).sentence


def _poor_digest(scene: Scene, rng: np.random.Generator) -> str:
    """The start of the passage word for word, or notes in which facts are missing."""
    if rng.random() < 0.5:
        sentences = [f.sentence for f in scene.facts]
        return " ".join(sentences[: int(rng.integers(2, len(sentences) + 1))])
    return " ".join(note(facts[: int(rng.integers(1, len(facts)))]) for facts in scene.by_person)


def demonstrations(scenes: Sequence[Scene], seed: int, good: float = 0.45) -> list[Row]:
    """Conversational rows of mixed quality, for SFT."""
    rows: list[Row] = []
    for i, scene in enumerate(scenes):
        text = sample_completion(scene, np.random.default_rng((seed, 11, i)), good)
        rows.append(
            {
                "messages": [*scene.messages(), {"role": "assistant", "content": text}],
                "kind": scene.kind,
            }
        )
    return rows
