"""What the base model read: conversations of the world, good and bad alike.

``python -m trimtab.sandbox.corpus OUT --rows N --turns T --seed S`` writes ``corpus.jsonl``, the tokenizer
and ``config.json`` of the base model into OUT; ``docs/sandbox.md`` has the whole command.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from trimtab.runs import write_atomic
from trimtab.sandbox.tokenizer import build, words
from trimtab.sandbox.world import Fact, Relation, Scene, gold, make_scene, sample_completion

OTHER: dict[Relation, Relation] = {"place": "thing", "thing": "job", "job": "place"}
THANKS, COMPLAINT = "yes .", "no ."


def document(rng: np.random.Generator, turns: int, good: float, recite: float) -> str:
    """One text of the corpus, in the tokenizer's chat format, without the first token.

    A share ``recite`` of them are words to be said again: they teach a small model to look back,
    which passages alone, whose answers can often be guessed, teach it late.
    """
    if rng.random() < recite:
        content = [w for w in words() if w not in (".", ",", "?", "!")]
        text = " ".join(str(w) for w in rng.choice(content, int(rng.integers(6, 21))))
        return f"<user> {text} <assistant> {text} <eos>"
    return conversation(rng, turns, good)


def conversation(rng: np.random.Generator, turns: int, good: float) -> str:
    """A passage, several questions about it, answers good and bad, and what the user thinks of
    each: readers of such talk learn to tell a right answer from a wrong one."""
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
    return THANKS if min(score.helpful, score.honest, score.harmless) == 1.0 else COMPLAINT


def _again(rng: np.random.Generator, facts: tuple[Fact, ...]) -> Scene:
    """Another request about the same passage, one that needs it read."""
    draw = rng.random()
    fact = facts[int(rng.integers(len(facts)))]
    if draw < 0.4:
        return Scene("summary", facts)
    if draw < 0.7:
        return Scene("silent", facts, query=Fact(fact.who, OTHER[fact.relation], ""))
    return Scene("ask", facts, query=fact)


def write(out: Path, texts: Iterable[str]) -> None:
    """Write ``corpus.jsonl``, the tokenizer, and the configuration of a model of 0.8M parameters."""
    out.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"text": text}) + "\n" for text in texts)
    write_atomic(out / "corpus.jsonl", "".join(lines).encode())
    tokenizer = build()
    tokenizer.save_pretrained(out / "tokenizer")
    config = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    write_atomic(out / "config.json", json.dumps(config, indent=1).encode())


def main() -> None:
    """Write the corpus, the tokenizer and the model's configuration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=5, help="questions about each passage")
    parser.add_argument("--good", type=float, default=0.5, help="share of faultless answers")
    parser.add_argument("--recite", type=float, default=0.25, help="share of words said again")
    parser.add_argument("--seed", type=int, default=1_000_003)
    args = parser.parse_args()
    texts = (
        document(np.random.default_rng((args.seed, i)), args.turns, args.good, args.recite)
        for i in range(args.rows)
    )
    write(args.out, texts)


if __name__ == "__main__":
    main()
