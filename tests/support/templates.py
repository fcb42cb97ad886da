"""Chat templates, one per mechanism that real ones have, and tokenizers that read any text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from tests.support.models import tiny

SPECIAL = (
    "<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>", "<|end|>", "<|return|>", "<|user|>",
    "<|assistant|>", "<|system|>", "</s>",
)  # fmt: skip

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Puts a newline after the end token."""

TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{% if m.content %}{{ m.content }}{% endif %}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Renders tools, tool calls and thoughts, all in place."""

DROPS = (
    "{% set last = namespace(user=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set content = m.content or '' %}"
    "{% if m.role == 'assistant' %}"
    "{% if '</think>' in content %}{% set thought = content.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set content = content.split('</think>')[-1].lstrip() %}"
    "{% else %}{% set thought = m.reasoning_content or '' %}{% endif %}"
    "<|im_start|>assistant\n{% if loop.index0 > last.user %}<think>\n{{ thought }}\n</think>\n\n{% endif %}"
    "{{ content }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""Drops the thoughts of earlier turns, as Qwen3's; ``enable_thinking`` false prefills an empty one."""

PREFILLS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}"
    "{% else %}<|assistant|>{{ m.content.split('</think>')[-1].lstrip() }}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
"""Begins every sampled turn with a thought and renders none, as DeepSeek-R1's."""

LAST_END = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% if loop.last and m.role == 'assistant' %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Ends the last turn with another token than earlier ones, as GPT-OSS's."""

STRICT = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
"""Refuses system turns and turns that do not alternate; has no generation prompt, as Llama-2's."""

ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
"""The generation prompt ends with a newline of text, as TinyLlama's and Zephyr's."""

NO_END = (
    "{% for m in messages %}{{ '### ' + m.role + ':\n' + m.content + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
)
"""Ends no turn with a token, as Alpaca's."""

SPACE = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
"""The generation prompt ends with a space, which belongs to the next word's token."""

PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}{{ p.text }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Renders content as a list of parts only."""

TODAY = (
    "{{ bos_token }}<|system|>Today is {{ strftime_now('%d %b %Y') }}.<|end|>"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""States the date."""

PHI = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
"""Ends the conversation with another token than its turns, as Phi-3's."""

ALL = {
    "chatml": CHATML, "tools": TOOLS, "drops": DROPS, "prefills": PREFILLS, "last_end": LAST_END,
    "strict": STRICT, "zephyr": ZEPHYR, "no_end": NO_END, "space": SPACE, "parts": PARTS, "today": TODAY,
    "phi": PHI,
}  # fmt: skip

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:?|<>/[]#_{}'\""
_TEXT = (
    "two plus two is four and three is seven . the sky is blue . user assistant system what ? "
    "rain in leeds wet yes , take a coat . four four four seven seven it is it is"
)


def tokenizer(template: str, kind: str = "bytes") -> PreTrainedTokenizerFast:
    """A tokenizer that reads any text.

    Args:
        template: Its chat template.
        kind: "bytes" is byte-level BPE. The others have SentencePiece's words, whose first character
            is a space: "first" puts one in front of a text (Mistral v3), "legacy" in front of it and
            after each special token (Llama-2, TinyLlama); "strips" is "legacy" with special tokens
            that take the space after them (Phi-3).
    """
    inner: Any = Tokenizer(models.BPE(byte_fallback=kind != "bytes", unk_token=None))
    words = _TEXT.split()
    space = " " if kind == "bytes" else "▁"
    alphabet = pre_tokenizers.ByteLevel.alphabet() if kind == "bytes" else [space, *_LETTERS]
    byte_tokens = [] if kind == "bytes" else [f"<0x{b:02X}>" for b in range(256)]
    inner.pre_tokenizer = (
        pre_tokenizers.ByteLevel(add_prefix_space=False)
        if kind == "bytes"
        else pre_tokenizers.WhitespaceSplit()
    )
    # Words one by one, so that no token joins two of them.
    trainer = trainers.BpeTrainer(
        vocab_size=700, show_progress=False, initial_alphabet=list(alphabet),
        special_tokens=[*SPECIAL, *byte_tokens],
    )  # fmt: skip
    inner.train_from_iterator([*words, *(space + w for w in words)], trainer)
    if kind == "bytes":
        inner.decoder = decoders.ByteLevel()
    else:
        # Byte tokens are no special tokens: only the model's fallback emits them.
        state = json.loads(inner.to_str())
        state["added_tokens"] = [
            t for t in state["added_tokens"] if t["content"] not in byte_tokens
        ]
        state["pre_tokenizer"] = None
        inner = Tokenizer.from_str(json.dumps(state))
        inner.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
    if kind == "first":
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    elif kind in ("legacy", "strips"):
        inner.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    inner.add_special_tokens(
        [AddedToken(t, special=True, normalized=False, rstrip=kind == "strips") for t in SPECIAL]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.chat_template = template
    return fast


def model_folder(path: Path, template: str, kind: str = "bytes", seed: int = 0) -> Path:
    """A tiny Llama with such a tokenizer."""
    tokens = tokenizer(template, kind)
    tiny("llama", seed=seed, vocab_size=len(tokens), max_position_embeddings=512).save_pretrained(
        path
    )
    tokens.save_pretrained(path)
    return path
