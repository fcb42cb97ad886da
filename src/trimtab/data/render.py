"""Text to tokens and masks, once: examples become groups."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from trimtab.data.conversation import Message, Text
from trimtab.data.formats import Example
from trimtab.errors import DataError, ModelError
from trimtab.types import Completion, Finish, Group, Ints

log = logging.getLogger(__name__)

NO_LIMIT = 1 << 20

PLAIN = (
    "{{ bos_token if bos_token else '' }}"
    "{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{{ '\\n\\nAssistant: ' + m['content'] + eos_token }}"
    "{% elif m['role'] == 'user' %}{{ '\\n\\nHuman: ' + m['content'] }}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\nAssistant: ' }}{% endif %}"
)
"""The built-in template "plain": the transcripts of hh-rlhf, each turn of the assistant ended by EOS."""


def load_tokenizer(path: str, chat_template: str | None = None) -> Any:
    """A tokenizer with an EOS, and a pad token that is not the EOS; the vocabulary does not grow.

    Args:
        path: Folder or hub id.
        chat_template: A Jinja file, or "plain", in place of the tokenizer's own.

    Raises:
        ModelError: there is no tokenizer, no EOS, nothing to pad with, or no such template.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
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
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.pad_token = _pad(tokenizer)
    return tokenizer


def _special(tokenizer: Any) -> dict[str, int]:
    """Special tokens, those that have no role of their own (as <|eot_id|>) included."""
    tokens = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    tokens.update({str(t): i for i, t in tokenizer.added_tokens_decoder.items() if t.special})
    return cast(dict[str, int], tokens)


def _pad(tokenizer: Any) -> str:
    """A token of the vocabulary to pad with: masks never read it, saved classifiers do.

    It becomes special, so decoding drops it: it must be one that text never contains.
    """
    used = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    template = tokenizer.chat_template or ""
    spare = [t for t, i in _special(tokenizer).items() if i not in used and t not in template]
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


class Renderer:
    """Turns examples into groups with one tokenizer.

    Args:
        tokenizer: With an EOS (see ``load_tokenizer``).
        max_prompt_length: Tokens; a longer prompt gives None.
        max_completion_length: Tokens; a longer completion is truncated, without a false EOS.
        on_long: "error" raises a DataError that names the row in either case.
        end_ids: Ids that end a completion besides the tokenizer's EOS and the template's end of a
            turn, as those of the model's generation config. Only added tokens count.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_prompt_length: int = NO_LIMIT,
        max_completion_length: int = NO_LIMIT,
        on_long: Literal["drop", "error"] = "drop",
        end_ids: Iterable[int] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.max_prompt_length = max_prompt_length
        self.max_completion_length = max_completion_length
        self.on_long = on_long
        self.dropped: list[str] = []
        """ "row N: why" of each dropped prompt."""
        self.cut: list[str] = []
        """ "row N: why" of each truncated completion."""
        if tokenizer.eos_token_id is None:
            raise ModelError(
                f"the tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token; set eos_token"
            )
        self.eos = int(tokenizer.eos_token_id)
        self.bos: int | None = tokenizer.bos_token_id
        self.adds_bos = self.bos is not None and self._raw("a", True)[:1] == [self.bos]
        self.special = set(_special(tokenizer).values())
        self.stop_ids = self._stop_ids(end_ids)

    def _raw(self, text: str, special: bool = False) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])

    def _stop_ids(self, end_ids: Iterable[int]) -> tuple[int, ...]:
        """EOS, ``end_ids``, and the token that ends a turn of the chat template."""
        ids = {self.eos}
        for i in set(end_ids) - ids:
            # An id of another vocabulary would end completions in the middle of the text.
            if i in self.tokenizer.added_tokens_decoder:
                ids.add(i)
            else:
                log.warning(
                    "%s: the model's config ends completions at id %d, which is no special token of "
                    "the tokenizer; it is ignored (mend eos_token_id in generation_config.json)",
                    self.tokenizer.name_or_path,
                    i,
                )
        if self.tokenizer.chat_template:
            messages: list[Message] = [{"role": "user", "content": "a"}]
            before = self._template(messages, True)
            after = self._template([*messages, {"role": "assistant", "content": "a"}], False)
            ends = [i for i in self._raw(after.removeprefix(before)) if i in self.special]
            ids.update(ends[-1:])
        return tuple(sorted(ids))

    def _template(self, messages: list[Message], generate: bool) -> str:
        if not self.tokenizer.chat_template:
            raise ModelError(
                f"the data is conversational but the tokenizer {self.tokenizer.name_or_path!r} has no chat "
                'template; give one with model.chat_template (a Jinja file, or "plain")'
            )
        try:
            return cast(
                str,
                self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=generate
                ),
            )
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "jinja2":
                raise
            raise ModelError(f"the chat template refuses a conversation: {error}") from None

    def _once(self, ids: list[int]) -> list[int]:
        """Exactly one BOS in front, where the tokenizer adds one."""
        if self.bos is None:
            return ids
        while ids[:2] == [self.bos, self.bos]:
            ids = ids[1:]
        return ids if ids[:1] == [self.bos] or not self.adds_bos else [self.bos, *ids]

    def _prompt_ids(self, prompt: Text) -> list[int]:
        if isinstance(prompt, list):
            ids = self._once(self._raw(self._template(prompt, True)))
        elif prompt:
            ids = self._once(self._raw(prompt))
        else:
            ids = []
        # Never empty: the first token of the completion is predicted from the last of the prompt.
        return ids or [self.bos if self.bos is not None else self.eos]

    def _long(self, example: Example, what: str, length: int, limit: int, key: str) -> str:
        why = f"row {example.row}: {what} has {length} tokens, over {limit}"
        if self.on_long == "error":
            name = example.source or "data"
            raise DataError(f"{name}: {why}; shorten it, raise {key}, or remove long rows")
        return why

    def _completion_ids(self, prompt: Text, answer: Text) -> tuple[list[int], list[bool]]:
        ids: list[int] = []
        mask: list[bool] = []
        if isinstance(answer, str) or isinstance(prompt, str):
            text = answer if isinstance(answer, str) else answer[-1]["content"]
            ids = self._raw(text)
            while ids[-1:] == [self.eos]:
                ids = ids[:-1]
            ids = [*ids, self.eos]
            mask = [True] * len(ids)
        else:
            done = list(prompt)
            before = self._template(done, True)
            for n, message in enumerate(answer):
                done.append(message)
                following = answer[n + 1]["role"] if n + 1 < len(answer) else ""
                after = self._template(done, following == "assistant")
                if not after.startswith(before):
                    raise ModelError(
                        "the chat template rewrites earlier turns when later ones are added, so the tokens of "
                        "a completion cannot be separated from its context; use another model.chat_template"
                    )
                part = self._raw(after[len(before) :])
                spoken = message["role"] == "assistant"
                if spoken:
                    ends = [i for i, x in enumerate(part) if x in self.stop_ids]
                    if ends:
                        # What the template puts after the end token is context, not trained on.
                        cut = ends[-1] + 1
                        ids += part[:cut]
                        mask += [True] * cut
                        if n + 1 < len(answer):
                            ids += part[cut:]
                            mask += [False] * (len(part) - cut)
                    else:
                        last = n + 1 == len(answer)
                        ids += [*part, self.eos] if last else part
                        mask += [True] * (len(part) + last)
                else:
                    ids += part
                    mask += [False] * len(part)
                before = after
        return ids, mask

    def prompt(self, example: Example) -> Group | None:
        """A group without completions; None when the prompt is over ``max_prompt_length``.

        Raises:
            DataError: it is, and ``on_long`` is "error".
            ModelError: the chat template is missing or refuses the conversation.
        """
        ids = np.array(self._prompt_ids(example.prompt), dtype=np.int64)
        if len(ids) > self.max_prompt_length:
            why = self._long(
                example, "prompt", len(ids), self.max_prompt_length, "max_prompt_length"
            )
            self.dropped.append(why)
            return None
        extra = dict(example.extra)
        if isinstance(example.prompt, list):
            extra["messages"] = example.prompt
        return Group(example.id, ids, [], readable(example.prompt), extra)

    def comparison(self, example: Example) -> Group | None:
        """A group with every completion, ranked where the example is."""
        group = self.prompt(example)
        if group is None:
            return None
        for i, answer in enumerate(example.completions):
            all_ids, all_mask = self._completion_ids(example.prompt, answer)
            ids = np.array(all_ids[: self.max_completion_length], dtype=np.int64)
            mask = np.array(all_mask[: self.max_completion_length], dtype=bool)
            if len(all_ids) > self.max_completion_length:
                key = "max_completion_length"
                self.cut.append(
                    self._long(example, "completion", len(all_ids), self.max_completion_length, key)
                )
            group.completions.append(
                Completion(
                    ids,
                    mask,
                    readable(answer),
                    rank=example.ranks[i] if example.ranks is not None else None,
                    margin=example.margins[i] if example.margins is not None else 0.0,
                )
            )
        return group

    def demonstration(self, example: Example) -> Group | None:
        """A group with its one completion."""
        return self.comparison(example)

    def completion(self, ids: Ints, finish: Finish) -> Completion:
        """What a sampler emitted, unchanged."""
        text = cast(str, self.tokenizer.decode(ids.tolist(), skip_special_tokens=True))
        return Completion(ids, np.ones(len(ids), dtype=bool), text.strip(), finish=finish)

    def retokenise(self, group: Group) -> Group:
        """The same texts in this renderer's tokens, for a model with another vocabulary."""
        messages = group.extra.get("messages")
        prompt: Text = cast("list[Message]", messages) if messages else group.text
        answers: list[Text] = [
            [{"role": "assistant", "content": c.text}] if messages else c.text
            for c in group.completions
        ]
        rendered = self.comparison(Example(group.id, prompt, answers))
        assert rendered is not None, "retokenise needs a renderer without limits"
        return rendered


def readable(text: Text) -> str:
    """Text as a person reads it; several turns with their roles."""
    if isinstance(text, str):
        return text
    if len(text) == 1:
        return text[0]["content"]
    return "\n\n".join(f"{m['role']}: {m['content']}" for m in text)
