"""What every row is measured on: models of random weights, one tokenizer, real and made-up texts.

Real texts are encoded once by a byte-pair vocabulary trained on themselves, and written down as
words ``w17 w5 ...`` of a word-level tokenizer. Every library then sees exactly the same token ids,
with the lengths of the real data, and no row can be lost to a difference in tokenising.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
_GIVEN = os.environ.get("TRIMTAB_DATA")
_BESIDE = [Path(_GIVEN)] if _GIVEN else [p / "shared" / "data" for p in ROOT.parents[:2]]
DATA = next((p for p in _BESIDE if p.is_dir()), _BESIDE[0])
"""Where the real data is: what ``TRIMTAB_DATA`` says, or beside the checkout."""
SPECIAL = ("<pad>", "<s>", "</s>")


def llama(
    vocabulary: int, hidden: int, inner: int, layers: int, heads: int, kv: int | None = None
) -> dict[str, Any]:
    """A Llama with tied embeddings; ``kv`` heads of keys and values, by default as many as ``heads``."""
    return {
        "model_type": "llama", "vocab_size": vocabulary, "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv or heads, "max_position_embeddings": 8192,
        "tie_word_embeddings": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip


def qwen(hidden: int, inner: int, layers: int, heads: int, kv: int) -> dict[str, Any]:
    """The shape of a published Qwen2.5."""
    return {
        "model_type": "qwen2", "vocab_size": 151_936, "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv, "max_position_embeddings": 32_768,
        "tie_word_embeddings": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip


MODELS: dict[str, dict[str, Any]] = {
    "1m": llama(2048, 96, 256, 6, 4),
    "5m": llama(2048, 256, 688, 6, 4),
    "25m": llama(2048, 512, 1376, 8, 8),
    "150m": llama(2048, 1024, 2752, 12, 16),
    # The shape of SmolLM2-135M; weights have no effect on speed.
    "smollm2-135m": llama(49_152, 576, 1536, 30, 9, 3),
    "qwen-0.5b": qwen(896, 4864, 24, 14, 2),
    "qwen-1.5b": qwen(1536, 8960, 28, 12, 2),
}


def tokenizer(vocabulary: int) -> Any:
    """One token a word: ``w3`` to ``w{vocabulary - 1}``."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = {w: i for i, w in enumerate(SPECIAL)}
    words |= {f"w{i}": i for i in range(len(SPECIAL), vocabulary)}
    plain = Tokenizer(WordLevel(words, unk_token="<pad>"))
    plain.pre_tokenizer = WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    wrapped.padding_side = "left"
    return wrapped


def model_folder(root: Path, name: str, vocabulary: int | None = None) -> Path:
    """A folder with random weights and the tokenizer; made once."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = dict(MODELS[name])
    fields["vocab_size"] = vocabulary or fields["vocab_size"]
    path = root / f"{name}-{fields['vocab_size']}"
    if not (path / "tokenizer_config.json").is_file():
        config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(path)
        tokenizer(config.vocab_size).save_pretrained(path)
    return path


def reward_folder(model: str) -> Path:
    """A reward model on the trunk of ``model``, its head random but saved; made once."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path = Path(f"{model}-reward")
    if not (path / "tokenizer_config.json").is_file():
        torch.manual_seed(0)
        scorer = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1)
        scorer.save_pretrained(path)
        AutoTokenizer.from_pretrained(model).save_pretrained(path)
    return path


def said(ids: Iterable[int]) -> str:
    """Ids as text of the word-level tokenizer."""
    return " ".join(f"w{i}" for i in ids)


def _transcripts() -> list[tuple[str, str, str]]:
    """(prompt, chosen, rejected) of the real preferences."""
    rows: list[tuple[str, str, str]] = []
    with gzip.open(DATA / "hh-harmless-pairs.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            mark = "\n\nAssistant:"
            at = row["chosen"].rfind(mark) + len(mark)
            prompt, good, bad = row["chosen"][:at], row["chosen"][at:], row["rejected"][at:]
            if prompt == row["rejected"][:at] and good.strip() and bad.strip() and good != bad:
                rows.append((prompt, good, bad))
    return rows


def _encoded(vocabulary: int) -> list[tuple[list[int], list[int], list[int]]]:
    from tokenizers import ByteLevelBPETokenizer

    rows = _transcripts()
    bpe = ByteLevelBPETokenizer()
    texts = (x for row in rows for x in row)
    size = min(vocabulary, 8192) - len(SPECIAL)
    bpe.train_from_iterator(texts, size, min_frequency=2, show_progress=False)

    def ids(text: str) -> list[int]:
        return [i + len(SPECIAL) for i in bpe.encode(text).ids]

    return [(ids(p), ids(a), ids(b)) for p, a, b in rows]


def _made_up(vocabulary: int, count: int) -> list[tuple[list[int], list[int], list[int]]]:
    """Lengths like those of the real data where it is absent."""
    rng = np.random.default_rng(0)

    def run(middle: float, spread: float, most: int) -> list[int]:
        n = int(np.clip(rng.lognormal(np.log(middle), spread), 4, most))
        return rng.integers(len(SPECIAL), vocabulary, n).tolist()

    return [(run(90, 0.9, 380), run(60, 0.8, 250), run(60, 0.8, 250)) for _ in range(count)]


def pairs(root: Path, vocabulary: int, count: int, longest: int = 1024) -> tuple[Path, str]:
    """``prompt``, ``chosen``, ``rejected`` and, for SFT, ``completion``; and what they are.

    Rows longer than ``longest`` tokens are left out, so that no library cuts any.
    """
    real = (DATA / "hh-harmless-pairs.jsonl.gz").is_file()
    about = "HH harmless" if real else "synthetic, with the lengths of HH"
    path = root / f"pairs-{vocabulary}-{longest}-{'hh' if real else 'made'}.jsonl"
    if not path.is_file():
        encoded = _encoded(vocabulary) if real else _made_up(vocabulary, 3000)
        short = [r for r in encoded if len(r[0]) + max(len(r[1]), len(r[2])) + 1 < longest]
        order = np.random.default_rng(0).permutation(len(short))
        rows = [
            {"prompt": said(p), "chosen": " " + said(a), "rejected": " " + said(b)}
            for p, a, b in (short[i] for i in order)
        ]
        root.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    lines = path.read_text(encoding="utf-8").splitlines()[:count]
    cut = root / f"{path.stem}-{len(lines)}.jsonl"
    if not cut.is_file():
        cut.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return cut, f"{about}, {len(lines)} rows of at most {longest} tokens"


def system_prompt(vocabulary: int, length: int) -> str:
    """Made-up text of ``length`` tokens before a prompt, always the same; empty for 0."""
    ids = np.random.default_rng(2).integers(len(SPECIAL), vocabulary, length).tolist()
    return said(ids) + " " if length else ""


def demonstrations(root: Path, vocabulary: int, count: int, system: int = 0) -> tuple[Path, str]:
    """The chosen answers as ``prompt`` and ``completion``, after a system prompt of ``system`` tokens."""
    source, about = pairs(root, vocabulary, count)
    path = root / f"demonstrations-{source.stem}{system_suffix(system)}.jsonl"
    if not path.is_file():
        rows = [json.loads(x) for x in source.read_text(encoding="utf-8").splitlines()]
        before = system_prompt(vocabulary, system)
        examples = [{"prompt": before + r["prompt"], "completion": r["chosen"]} for r in rows]
        path.write_text("".join(json.dumps(r) + "\n" for r in examples), encoding="utf-8")
    return path, about + (f" after one system prompt of {system} tokens" if system else "")


def prompts(
    root: Path, vocabulary: int, count: int, length: int, system: int = 0
) -> tuple[Path, str]:
    """Made-up prompts of exactly ``length`` tokens, after a system prompt of ``system`` tokens."""
    path = root / f"prompts-{vocabulary}-{count}-{length}{system_suffix(system)}.jsonl"
    if not path.is_file():
        rng = np.random.default_rng(1)
        root.mkdir(parents=True, exist_ok=True)
        rows = rng.integers(len(SPECIAL), vocabulary, (count, length)).tolist()
        before = system_prompt(vocabulary, system)
        text = "".join(json.dumps({"prompt": before + said(r)}) + "\n" for r in rows)
        path.write_text(text, encoding="utf-8")
    about = f"synthetic, {count} prompts of {length} tokens"
    return path, about + (f" after one system prompt of {system} tokens" if system else "")


def system_suffix(system: int) -> str:
    """Part of a name for rows with a system prompt of so many tokens; empty for 0."""
    return f"-system{system}" if system else ""


def reward(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    """A cheap reward that differs from answer to answer: the last words, read as a number."""
    return [sum(map(ord, c[-9:])) % 17 / 17.0 for c in completions]
