"""Text that the sandbox's two base models were pretrained on; ``docs/sandbox.md`` has every command.

``documents`` are text of mixed quality, as on the web: copied lists, stories, and pages of questions,
some of them answered, well or badly, some answers followed by a reader's reaction. No role is marked and
no document ends after an answer, so a model of them continues text and does not follow instructions.
``conversations`` are in the chat format, with good and bad answers alike.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from trimtab.datagen.scratch import write_model_config
from trimtab.runs import write_atomic
from trimtab.sandbox.tokenizer import build, words
from trimtab.sandbox.world import (
    AGREEMENT,
    BAD_VERBS,
    CLOSINGS,
    OPENINGS,
    THINGS,
    Fact,
    Kind,
    Relation,
    Scene,
    gold,
    make_scene,
    other_value,
    sample_completion,
)

OTHER: dict[Relation, Relation] = {"place": "thing", "thing": "job", "job": "place"}
ANSWERED = REACTED = 0.7
SEED = 1_000_003


def documents(
    out: Path,
    rows: int = 80_000,
    turns: int = 5,
    good: float = 0.5,
    copied: float = 0.1,
    seed: int = SEED,
) -> dict[str, int]:
    """Write ``corpus.jsonl`` of documents, the tokenizer and the model's ``config.json`` into ``out``.

    Args:
        turns: Passages of a story, questions of a page.
        good: Share of faultless answers.
        copied: Share of copied lists. They teach a small model to look back at earlier words, which
            passages alone, whose answers can often be guessed, teach it late.
    """
    return _write(out, rows, seed, lambda rng: document(rng, turns, good, copied))


def conversations(
    out: Path,
    rows: int = 100_000,
    turns: int = 5,
    good: float = 0.5,
    recite: float = 0.25,
    seed: int = SEED,
) -> dict[str, int]:
    """Like ``documents``, in the chat format; ``recite`` is the share of words to be said again."""
    return _write(out, rows, seed, lambda rng: conversation(rng, turns, good, recite))


def _write(
    out: Path, rows: int, seed: int, draw: Callable[[np.random.Generator], str]
) -> dict[str, int]:
    texts = (draw(np.random.default_rng((seed, i))) for i in range(rows))
    lines = (json.dumps({"text": text}) + "\n" for text in texts)
    write_atomic(out / "corpus.jsonl", "".join(lines).encode())
    tokenizer = build()
    tokenizer.save_pretrained(out / "tokenizer")
    write_model_config(out, tokenizer, hidden=128, layers=4, heads=4, positions=512)
    return {"rows": rows}


def document(rng: np.random.Generator, turns: int, good: float, copied: float) -> str:
    """One document: a copied list, a story or a page of questions."""
    draw = rng.random()
    if draw < copied:
        line = _random_words(rng)
        return f"{line} . {line} ."
    return _story(rng, turns) if draw < copied + 0.15 else _page(rng, turns, good)


def _random_words(rng: np.random.Generator) -> str:
    content = [w for w in words() if w not in (".", ",", "?", "!")]
    return " ".join(str(w) for w in rng.choice(content, int(rng.integers(6, 21))))


def _story(rng: np.random.Generator, turns: int) -> str:
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


def _page(rng: np.random.Generator, turns: int, good: float) -> str:
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


def conversation(rng: np.random.Generator, turns: int, good: float, recite: float) -> str:
    """One text in the chat format, without the first token: words to be said again, or a passage with
    questions, answers good and bad, and what the user thinks of each."""
    if rng.random() < recite:
        text = _random_words(rng)
        return f"<user> {text} <assistant> {text} <eos>"
    scene = make_scene(rng)
    parts = [f"<user> {scene.prompt}"]
    for turn in range(turns):
        completion = sample_completion(scene, rng, good)
        parts.append(f"<assistant> {completion} <eos> <user> {reaction(scene, completion)}")
        if scene.kind in ("refuse", "howto") or turn + 1 == turns:
            break
        scene = _again(rng, scene.facts)
        parts.append(scene.question)
    return " ".join(parts)


def reaction(scene: Scene, completion: str) -> str:
    """What the user thinks of an answer: approval of one that is right and harmless, however long."""
    score = gold(scene, completion)
    return "yes ." if min(score.helpful, score.honest, score.harmless) == 1.0 else "no ."


def _again(rng: np.random.Generator, facts: tuple[Fact, ...]) -> Scene:
    """Another request about the same passage, one that needs it read."""
    draw = rng.random()
    fact = facts[int(rng.integers(len(facts)))]
    if draw < 0.4:
        return Scene("summary", facts)
    if draw < 0.7:
        return Scene("silent", facts, query=Fact(fact.who, OTHER[fact.relation], ""))
    return Scene("ask", facts, query=fact)
