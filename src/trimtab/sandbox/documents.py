"""The text that the demo's base model is pretrained on: documents of the world, in no chat format.

Text of mixed quality, as on the web: copied lists, stories, and pages of questions, some of them
answered, well or badly, some answers followed by a reader's reaction. No role is marked and no document
ends after an answer, so a model of such text continues text and does not follow instructions.

``python -m trimtab.sandbox.documents OUT --rows N`` writes ``corpus.jsonl``, the tokenizer and
``config.json`` of the model into OUT; ``docs/sandbox.md`` has every command.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from trimtab.sandbox.corpus import OTHER, reaction, write
from trimtab.sandbox.tokenizer import words
from trimtab.sandbox.world import (
    AGREEMENT,
    BAD_VERBS,
    CLOSINGS,
    OPENINGS,
    THINGS,
    Fact,
    Kind,
    Scene,
    make_scene,
    other_value,
    sample_completion,
)

ANSWERED = REACTED = 0.7


def document(rng: np.random.Generator, turns: int, good: float, copied: float) -> str:
    """One document: a copied list, a story or a page of questions.

    Args:
        rng: Draws all of it.
        turns: Passages of a story, questions of a page.
        good: Share of faultless answers.
        copied: Share of copied lists. They teach a small model to look back at earlier words, which
            passages alone, whose answers can often be guessed, teach it late.
    """
    draw = rng.random()
    if draw < copied:
        return copied_list(rng)
    return story(rng, turns) if draw < copied + 0.15 else page(rng, turns, good)


def copied_list(rng: np.random.Generator) -> str:
    """Some words, and the same words again."""
    content = [w for w in words() if w not in (".", ",", "?", "!")]
    line = " ".join(str(w) for w in rng.choice(content, int(rng.integers(6, 21))))
    return f"{line} . {line} ."


def story(rng: np.random.Generator, turns: int) -> str:
    """Passages, each partly told again in another order."""
    parts: list[str] = []
    for _ in range(turns):
        scene = make_scene(rng)
        sentences = [f.sentence for f in scene.facts]
        if scene.kind == "howto":
            sentences.append(scene.instruction)
        again = [sentences[i] for i in rng.permutation(len(sentences))]
        leads = (*OPENINGS, *CLOSINGS, AGREEMENT)
        lead = leads[int(rng.integers(len(leads)))]
        parts += [*sentences, lead, *again[: int(rng.integers(1, len(again) + 1))]]
    return " ".join(parts)


def page(rng: np.random.Generator, turns: int, good: float) -> str:
    """A passage and questions about it: most are answered, and most answers get a reaction."""
    scene = make_scene(rng)
    parts = [scene.prompt.removesuffix(scene.question).strip()]
    howto = scene if scene.kind == "howto" else None
    for _ in range(turns):
        parts.append(scene.question)
        if rng.random() < ANSWERED:
            text = sample_completion(scene, rng, good)
            parts.append(text)
            if rng.random() < REACTED:
                parts.append(reaction(scene, text))
        scene = _another(rng, scene.facts, howto)
    return " ".join(parts)


def _another(rng: np.random.Generator, facts: tuple[Fact, ...], howto: Scene | None) -> Scene:
    """Another question about the same passage."""
    kinds: tuple[Kind, ...] = ("ask", "silent", "summary", "opinion", "refuse")
    kind = kinds[int(rng.integers(len(kinds)))]
    fact = facts[int(rng.integers(len(facts)))]
    if kind == "summary":
        return Scene(kind, facts)
    if kind == "silent":
        return Scene(kind, facts, query=Fact(fact.who, OTHER[fact.relation], ""))
    if kind == "opinion":
        opinion = fact if rng.random() < 0.3 else other_value(rng, fact)
        return Scene(kind, facts, query=fact, opinion=opinion)
    if kind == "refuse":
        verb, thing = (options[int(rng.integers(len(options)))] for options in (BAD_VERBS, THINGS))
        return howto or Scene(kind, facts, verb=verb, thing=thing)
    return Scene(kind, facts, query=fact)


def main() -> None:
    """Write the corpus, the tokenizer and the model's configuration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=80_000)
    parser.add_argument("--turns", type=int, default=5, help="questions about each passage")
    parser.add_argument("--good", type=float, default=0.5, help="share of faultless answers")
    parser.add_argument("--copied", type=float, default=0.1, help="share of copied lists")
    parser.add_argument("--seed", type=int, default=1_000_003)
    args = parser.parse_args()
    texts = (
        document(np.random.default_rng((args.seed, i)), args.turns, args.good, args.copied)
        for i in range(args.rows)
    )
    write(args.out, texts)


if __name__ == "__main__":
    main()
