"""The sandbox's word-level tokenizer, as an ordinary transformers one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trimtab.sandbox import world

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{{ '<assistant> ' + m['content'] + ' ' + eos_token + ' ' }}"
    "{% else %}{{ '<user> ' + m['content'] + ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


def words() -> list[str]:
    """Every word of the sandbox, in a fixed order."""
    texts = [
        *world.NAMES,
        *world.PLACES,
        *world.THINGS,
        *world.JOBS,
        *world.TOOLS,
        *world.GOOD_VERBS,
        *world.BAD_VERBS,
        *world.OPENINGS,
        *world.CLOSINGS,
        world.UNKNOWN,
        world.REFUSAL,
        world.AGREEMENT,
        "where what does have is in the has works as a how do i use to think tell me all of it you no yes . , ? !",
    ]
    return list(dict.fromkeys(w for text in texts for w in text.split()))


def build() -> PreTrainedTokenizerFast:
    """The tokenizer of the sandbox."""
    return word_level(words())


def word_level(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word, lower case, split at white space, with special tokens
    and a chat template."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<assistant>"]
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.normalizer = normalizers.Lowercase()  # pyright: ignore[reportAttributeAccessIssue]
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer
