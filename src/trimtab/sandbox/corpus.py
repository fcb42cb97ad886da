"""What the base model read: conversations of the world, good and bad alike.

``python -m trimtab.sandbox.corpus OUT --rows N --turns T --seed S`` writes ``corpus.jsonl``, the tokenizer
and ``config.json`` of the base model into OUT; ``docs/sandbox.md`` has the whole command.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.runs import write_atomic
from trimtab.sandbox.tokenizer import build
from trimtab.sandbox.world import Fact, Relation, Scene, answer, make_scene

OTHER: dict[Relation, Relation] = {"place": "thing", "thing": "job", "job": "place"}


def conversation(
    rng: np.random.Generator, turns: int = 3, good: float = 0.6
) -> list[dict[str, str]]:
    """A passage with several questions about it: many look-ups a row make looking up learnable."""
    first = make_scene(rng)
    said = [*first.messages(), {"role": "assistant", "content": answer(first, rng, good)}]
    if first.kind in ("refuse", "howto"):
        return said
    for _ in range(turns - 1):
        scene = _again(rng, first.facts)
        said.append({"role": "user", "content": scene.question})
        said.append({"role": "assistant", "content": answer(scene, rng, good)})
    return said


def _again(rng: np.random.Generator, facts: tuple[Fact, ...]) -> Scene:
    """Another request about the same passage, one that needs it read."""
    draw = rng.random()
    asked = facts[int(rng.integers(len(facts)))]
    if draw < 0.3:
        return Scene("summary", facts)
    if draw < 0.6:
        return Scene("silent", facts, asked=Fact(asked.who, OTHER[asked.relation], ""))
    return Scene("ask", facts, asked=asked)


def main() -> None:
    """Write the corpus, the tokenizer and the model's configuration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=3, help="questions about each passage")
    parser.add_argument("--good", type=float, default=0.6, help="share of faultless answers")
    parser.add_argument("--seed", type=int, default=1_000_003)
    args = parser.parse_args()
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for i in range(args.rows):
        rng = np.random.default_rng((args.seed, i))
        said = conversation(rng, args.turns, args.good)
        row: dict[str, Any] = {"messages": said}
        lines.append(json.dumps(row) + "\n")
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


if __name__ == "__main__":
    main()
