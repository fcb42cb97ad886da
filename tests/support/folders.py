"""Small whole model folders and data files for end-to-end tests."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.support.models import tiny
from trimtab.models.export import save_model
from trimtab.models.heads import Scorer
from trimtab.models.model_spec import ModelSpec

WORDS = [
    "red",
    "green",
    "blue",
    "cat",
    "dog",
    "sun",
    "moon",
    "is",
    "the",
    "a",
    "what",
    "where",
    "who",
    "yes",
    "no",
    "not",
    "here",
    "there",
    "?",
    ".",
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} "
    "{% if m['role'] == 'assistant' %}{{ eos_token }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)

WORDY: dict[str, Any] = {"name": "wordy", "function": "tests.support.folders:wordy"}


def tokenizer() -> PreTrainedTokenizerFast:
    """Word-level, with a chat template and a pad token of its own."""
    special = ["<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<assistant>"]
    vocabulary = {w: i for i, w in enumerate([*special, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast_tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"],
    )
    fast_tokenizer.chat_template = TEMPLATE
    return fast_tokenizer


def model_folder(path: Path, seed: int = 0) -> Path:
    """A tiny Llama with its tokenizer."""
    model = tiny("llama", seed=seed)
    model.save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def reward_folder(path: Path, base: Path) -> Path:
    """The reward model that training would start from at ``base``: its head is untrained."""
    scorer = Scorer.load(ModelSpec(path=str(base), device="cpu"), pad_id=0)
    save_model(scorer.model, path, tokenizer())
    return path


def sentence(rng: random.Random, low: int = 2, high: int = 7) -> str:
    """A few words."""
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    """Rows as jsonl."""
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def demonstrations(path: Path, n: int = 48) -> Path:
    """Conversations of one turn."""
    rng = random.Random(0)
    rows: list[dict[str, object]] = [
        {
            "messages": [
                {"role": "user", "content": sentence(rng)},
                {"role": "assistant", "content": sentence(rng)},
            ]
        }
        for _ in range(n)
    ]
    return write(path, rows)


def comparisons(path: Path, n: int = 48) -> Path:
    """Pairs of plain answers."""
    rng = random.Random(1)
    rows: list[dict[str, object]] = []
    for _ in range(n):
        a, b = sentence(rng), sentence(rng)
        rows.append({"prompt": sentence(rng), "chosen": a, "rejected": b if a != b else b + " ."})
    return write(path, rows)


def prompts(path: Path, n: int = 48) -> Path:
    """Conversational prompts."""
    rng = random.Random(2)
    return write(path, [{"prompt": [{"role": "user", "content": sentence(rng)}]} for _ in range(n)])


def every_file(folder: Path) -> Path:
    """A model, demonstrations, comparisons and prompts; the folder."""
    model_folder(folder / "model")
    demonstrations(folder / "demos.jsonl")
    comparisons(folder / "pairs.jsonl")
    prompts(folder / "prompts.jsonl")
    return folder


def wordy(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    """A reward: share of different words."""
    return [len(set(c.split())) / max(1, len(c.split())) for c in completions]


def wordy_or_none(prompts: list[str], completions: list[str], **_: object) -> list[float | None]:
    """``wordy``, which fails on some completions."""
    scores = wordy(prompts, completions)
    return [None if len(c) % 4 == 0 else s for c, s in zip(completions, scores, strict=True)]


def wordier(
    prompts: list[str], pairs: list[list[str]], fail: bool = False, **_: object
) -> list[float | None]:
    """A judge: the answer with more different words is better."""
    if fail:
        return [None for _ in pairs]
    a, b = ([len(set(p[k].split())) for p in pairs] for k in (0, 1))
    return [0.5 if x == y else float(y > x) for x, y in zip(a, b, strict=True)]


def first(prompts: list[str], pairs: list[list[str]], **_: object) -> list[float]:
    """A judge that takes whatever it is shown first."""
    return [0.0 for _ in pairs]


def rl_settings(base: Path, out: Path, **more: Any) -> dict[str, Any]:
    """A short RLOO run on the model and prompts in ``base``, rewarded by ``wordy``."""
    return {
        "out": str(out), "model": {"path": str(base / "model"), "device": "cpu"},
        "data": {"path": str(base / "prompts.jsonl")}, "rewards": [WORDY],
        "method": {"type": "rloo", "group_size": 4, "kl": {"beta": 0.01}}, "sampling": {"max_new_tokens": 6},
        "steps": 6, "batch_size": 8, "optim": {"lr": 5e-3, "lr_scheduler_type": "constant"}, **more,
    }  # fmt: skip
