"""Tokenizers with an end of sequence and a pad token, and the built-in chat template."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

from trimtab.errors import ModelError

PLAIN = (
    "{{ bos_token if bos_token else '' }}"
    "{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{{ '\\n\\nAssistant: ' + m['content'] + eos_token }}"
    "{% elif m['role'] == 'user' %}{{ '\\n\\nHuman: ' + m['content'] }}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"
)
"""The built-in template "plain": the transcripts of hh-rlhf, each turn of the assistant ended by EOS."""


def quiet_transformers() -> None:
    """Turn off progress bars and reports about new heads: what goes wrong is raised as an error."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def load_tokenizer(
    path: str, chat_template: str | None = None, vocab_size: int | None = None
) -> Any:
    """A tokenizer with an EOS, and a pad token that ends nothing; the vocabulary does not grow.

    Args:
        path: Folder or hub id.
        chat_template: A Jinja file, or "plain", in place of the tokenizer's own.
        vocab_size: Of the model. A pad token beyond it is replaced: a saved classifier with such a
            pad id cannot be loaded.

    Raises:
        ModelError: there is no tokenizer, no EOS, nothing to pad with, or no such template.
    """
    from transformers import AutoTokenizer

    quiet_transformers()
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        adapter = adapter_config_file(path)
        base = adapter and json.loads(adapter.read_bytes()).get("base_model_name_or_path")
        if base and base != path:  # an adapter without a tokenizer has that of its base model
            return load_tokenizer(base, chat_template, vocab_size)
        raise ModelError(
            f"no tokenizer at {path!r}: {str(error).splitlines()[0]} (name one with model.tokenizer)"
        ) from None
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer at {path!r} has no end-of-sequence token, so a model would never learn to "
            "stop; set eos_token in its tokenizer_config.json"
        )
    if chat_template == "plain":
        tokenizer.chat_template = PLAIN
    elif chat_template is not None:
        file = Path(chat_template)
        if not file.is_file():
            raise ModelError(f'chat_template: {chat_template!r} is neither a file nor "plain"')
        tokenizer.chat_template = file.read_text(encoding="utf-8")
    # A completion may end with its template's end token, which a classifier would take for padding.
    limit = vocab_size or sys.maxsize
    pad = tokenizer.pad_token
    ends = pad in (None, tokenizer.eos_token) or pad in (tokenizer.chat_template or "")
    if ends or tokenizer.pad_token_id >= limit:
        tokenizer.pad_token = _pad(tokenizer, limit)
    return tokenizer


def adapter_config_file(path: str) -> Path | None:
    """The ``adapter_config.json`` of a folder or hub id; None if it holds no adapter, or nothing."""
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        file = find_adapter_config_file(path)
    except OSError:  # neither a folder nor a hub id: loading it reports that
        return None
    return Path(file) if file else None


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """Special tokens, those that have no role of their own (as <|eot_id|>) included."""
    tokens = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    tokens.update({str(t): i for i, t in tokenizer.added_tokens_decoder.items() if t.special})
    return cast(dict[str, int], tokens)


def _pad(tokenizer: Any, limit: int) -> str:
    """A token with an id below ``limit`` to pad with: masks never read it, saved classifiers do.

    It becomes special, so decoding drops it: it must be one that text never contains.
    """
    used = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    template = tokenizer.chat_template or ""
    special = special_tokens(tokenizer)
    spare = [t for t, i in special.items() if i not in used and i < limit and t not in template]
    for sign in ("pad", "reserved", "unused", "unk"):
        for token in spare:
            if sign in token.lower():
                return token
    # The byte 0xFF, as byte-fallback and byte-level vocabularies spell it, is in no UTF-8 text.
    for token in ("<0xFF>", "\u00ff"):
        at = tokenizer.get_vocab().get(token)
        if at is not None and tokenizer.decode([at]) == "\ufffd":
            return token
    if spare:
        return spare[0]
    raise ModelError(
        f"the tokenizer {tokenizer.name_or_path!r} has no token to pad with other than its end of "
        "sequence; add one to the vocabulary and set pad_token in its tokenizer_config.json"
    )
