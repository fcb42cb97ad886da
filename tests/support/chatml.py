"""A small model under a ChatML template, whose turns end with a newline after the end token."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from tests.support.folders import write
from trimtab.config import build
from trimtab.datagen import scratch

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NOUNS = ["river", "garden", "engine", "window", "library", "mountain", "recipe", "violin"]
KIND = ["please take your time", "happy to help you", "thank you for asking", "with great care"]
RUDE = ["figure it out", "what a dull question", "stop asking me", "i do not care"]


def pairs(path: Path, n: int, seed: int, noise: float = 0.3) -> Path:
    """Pairs of one turn; the kind completion is chosen, in a share of ``noise`` the rude one."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for _ in range(n):
        noun = rng.choice(NOUNS)
        texts = [
            f"The {noun}: {rng.choice(words)}, {rng.randint(10, 99)}." for words in (KIND, RUDE)
        ]
        if rng.random() < noise:
            texts.reverse()
        prompt = [
            {"role": "user", "content": f"Tell me about the {noun} number {rng.randint(0, 999)}"}
        ]
        turns = [[{"role": "assistant", "content": text}] for text in texts]
        rows.append({"prompt": prompt, "chosen": turns[0], "rejected": turns[1]})
    return write(path, rows)


def demonstrations(path: Path, n: int) -> Path:
    """Conversations of one turn with a kind answer."""
    rng = random.Random(2)
    rows: list[dict[str, Any]] = []
    for _ in range(n):
        noun = rng.choice(NOUNS)
        question = f"Tell me about the {noun} number {rng.randint(0, 999)}"
        answer = f"The {noun}: {rng.choice(KIND)}, {rng.randint(10, 99)}."
        rows.append({"messages": [{"role": "user", "content": question},
                                  {"role": "assistant", "content": answer}]})  # fmt: skip
    return write(path, rows)


def chatml_model(folder: Path) -> tuple[Path, Path]:
    """A configuration of random weights and a byte-level tokenizer with the template.

    Returns:
        Paths for ``model.path`` and ``model.tokenizer``.
    """
    texts = write(
        folder / "texts.jsonl", [{"text": f"{n} {w}"} for n in NOUNS for w in (*KIND, *RUDE)]
    )
    options = {"out": str(folder / "scratch"), "data": str(texts), "vocab": 320, "hidden": 64,
               "layers": 2, "heads": 2, "positions": 512}  # fmt: skip
    scratch.main(build(scratch.ScratchConfig, options))
    tokenizer = AutoTokenizer.from_pretrained(folder / "scratch" / "tokenizer")
    tokenizer.add_special_tokens(
        {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder / "scratch" / "tokenizer")
    scratch.write_model_config(folder / "scratch", tokenizer, 64, 2, 2, 512)
    config = folder / "scratch" / "config.json"
    # Another theta than the default: a client that does not find it computes other scores.
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}
    config.write_text(json.dumps(json.loads(config.read_text()) | rope))
    return config, folder / "scratch" / "tokenizer"
