"""Text to tokens and masks, once: examples become groups."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np

from trimtab.data.chat_template import ChatTemplate, join_turns
from trimtab.data.conversation import (
    BadRowError,
    Message,
    Text,
    message_text,
    template_columns,
)
from trimtab.data.formats import Example
from trimtab.data.load_tokenizer import special_tokens
from trimtab.data.piece_tokens import (
    Piece,
    completion_ids,
    raw_ids,
    shared_length,
    whole_ids,
)
from trimtab.data.thoughts import TOKENS, answer_text, template_prefill
from trimtab.errors import DataError, ModelError, RowError
from trimtab.types import Completion, Finish, Group, Ints

log = logging.getLogger(__name__)

NO_LIMIT = 1 << 20
_PREFILL_TOKENS = 64
"""The last tokens of a prompt that are read for what the template wrote of the completion."""


class Renderer:
    """Turns examples into groups with one tokenizer.

    Args:
        tokenizer: With an EOS (see ``load_tokenizer``).
        max_prompt_length: Tokens; a longer prompt gives None.
        max_completion_length: Tokens; a longer completion is truncated, without a false EOS.
        on_long: "error" raises a DataError that names the row in either case.
        end_ids: Ids that end a completion besides the tokenizer's EOS and the template's end of a
            turn, as those of the model's generation config. Only added tokens count.
        vocab_size: Of the model; a row with a token id beyond it is a ModelError.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_prompt_length: int = NO_LIMIT,
        max_completion_length: int = NO_LIMIT,
        on_long: Literal["drop", "error"] = "drop",
        end_ids: Iterable[int] = (),
        vocab_size: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer)
        self._warned = False
        self.max_prompt_length = max_prompt_length
        self.max_completion_length = max_completion_length
        self.on_long = on_long
        self.vocab_size = vocab_size
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
        self.adds_bos = self.bos is not None and list(tokenizer("a")["input_ids"])[:1] == [self.bos]
        self.special = {i: token for token, i in special_tokens(tokenizer).items()}
        self.markers = {i for i, token in self.special.items() if token in TOKENS}
        """Special tokens that a completion's text keeps, to tell thoughts from the answer."""
        self.stop_ids = self._stop_ids(end_ids)
        self._ends = tuple(self.tokenizer.convert_ids_to_tokens(list(self.stop_ids)))

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
            try:
                before = self.template(messages, {}, "generate")
                after = self.template([*messages, {"role": "assistant", "content": "a"}], {})
            except BadRowError:
                return tuple(ids)
            turn = raw_ids(self.tokenizer, after[shared_length([before, after]) :])
            ends = [i for i in turn if i in self.special]
            ids.update(ends[-1:])
        return tuple(sorted(ids))

    def _once(self, ids: list[int]) -> list[int]:
        """Exactly one BOS in front, where the tokenizer adds one."""
        if self.bos is None:
            return ids
        while ids[:2] == [self.bos, self.bos]:
            ids = ids[1:]
        return ids if ids[:1] == [self.bos] or not self.adds_bos else [self.bos, *ids]

    def _prompt_text(self, example: Example) -> str:
        if isinstance(example.prompt, str):
            return example.prompt
        prefill = example.prompt[-1]["role"] == "assistant"
        columns = template_columns(example.extra)
        return self.template(example.prompt, columns, "prefill" if prefill else "generate")

    def _prompt_ids(self, text: str, plain: bool) -> list[int]:
        ids = raw_ids(self.tokenizer, text) if text else []
        if plain and text:
            ids = self._once(ids)
        # Never empty: the first token of the completion is predicted from the last of the prompt.
        return ids or [self.bos if self.bos is not None else self.eos]

    def check_ids(self, ids: Ints) -> None:
        """Refuse token ids that the model does not have.

        Raises:
            ModelError: naming the token.
        """
        if self.vocab_size is None or not len(ids) or int(ids.max()) < self.vocab_size:
            return
        token = self.tokenizer.convert_ids_to_tokens(int(ids.max()))
        raise ModelError(
            f"the tokenizer {self.tokenizer.name_or_path!r} does not fit the model: its token {token!r} has "
            f"id {int(ids.max())}, but the model's vocabulary has {self.vocab_size} ids; use the model's own "
            "tokenizer (model.tokenizer), or a model whose embeddings were resized for this one"
        )

    def _long(self, example: Example, what: str, length: int, limit: int, key: str) -> str:
        why = f"row {example.row}: {what} has {length} tokens, over {limit}"
        if self.on_long == "error":
            name = example.source or "data"
            raise DataError(f"{name}: {why}; shorten it, raise {key}, or remove long rows")
        return why

    def _sequences(
        self, example: Example, text: str, prompt: list[int], answer: Text
    ) -> list[tuple[list[int], list[int], list[bool]]]:
        """Prompt, completion and training mask of a completion, or of each turn that has a prompt
        of its own."""
        if isinstance(answer, str) or isinstance(example.prompt, str):
            assert isinstance(answer, str), "a plain prompt has plain completions"
            ids, _ = completion_ids(
                self.tokenizer, self.special, prompt, [Piece(text, False), Piece(answer, True)]
            )
            while ids[-1:] == [self.eos]:
                ids = ids[:-1]
            return [(prompt, [*ids, self.eos], [True] * (len(ids) + 1))]
        columns = template_columns(example.extra)
        lists = self.template.completions(example.prompt, answer, columns, text, self._ends)
        sequences: list[tuple[list[int], list[int], list[bool]]] = []
        for pieces in lists:
            context = prompt if pieces[0].text == text else self._prompt_ids(pieces[0].text, False)
            ids, mask = completion_ids(self.tokenizer, self.special, context, pieces)
            if not set(self.stop_ids).intersection(ids[len(ids) - 1 :]):
                # The template ends turns with no token: the model must learn to stop all the same.
                ids, mask = [*ids, self.eos], [*mask, True]
            sequences.append((context, ids, mask))
        return sequences

    @contextmanager
    def _row(self, example: Example) -> Generator[None]:
        try:
            yield
        except BadRowError as error:
            raise RowError(example.source, example.row, str(error)) from None

    def prompt(self, example: Example) -> Group | None:
        """A group without completions; None when the prompt is over ``max_prompt_length``.

        Raises:
            DataError: it is, and ``on_long`` is "error".
            RowError: the chat template refuses the conversation.
            ModelError: there is no chat template.
        """
        with self._row(example):
            return self._prompt(example, self._prompt_text(example))

    def _prompt(self, example: Example, text: str) -> Group | None:
        plain = isinstance(example.prompt, str)
        ids = np.array(self._prompt_ids(text, plain), dtype=np.int64)
        self.check_ids(ids)
        if len(ids) > self.max_prompt_length:
            why = self._long(
                example, "prompt", len(ids), self.max_prompt_length, "max_prompt_length"
            )
            self.dropped.append(why)
            return None
        extra = {k: v for k, v in example.extra.items() if k != "messages"}
        if not plain:
            extra["messages"] = example.prompt
        last = example.prompt[-1] if isinstance(example.prompt, list) else None
        if last is not None and last["role"] == "assistant":
            prefill = message_text(last)
        else:
            prefill = template_prefill(self.tokenizer.decode(ids[-_PREFILL_TOKENS:].tolist()))
        return Group(example.id, ids, [], readable(example.prompt), extra, prefill)

    def _completion(
        self, example: Example, index: int, all_ids: Sequence[int], all_mask: Sequence[bool]
    ) -> Completion:
        """Completion ``index`` of a row, truncated to ``max_completion_length``."""
        limit = self.max_completion_length
        ids = np.array(all_ids[:limit], dtype=np.int64)
        self.check_ids(ids)
        if len(all_ids) > limit:
            key = "max_completion_length"
            self.cut.append(self._long(example, "completion", len(all_ids), limit, key))
        answer = example.completions[index]
        return Completion(
            ids,
            np.array(all_mask[:limit], dtype=bool),
            readable(answer),
            messages=answer if isinstance(answer, list) else None,
            rank=example.ranks[index] if example.ranks is not None else None,
            margin=example.margins[index] if example.margins is not None else 0.0,
            finish="length" if len(all_ids) > limit else "given",
        )

    def comparison(self, example: Example) -> Group | None:
        """A group with every completion, ranked where the example is.

        Raises:
            DataError, RowError, ModelError: as for ``prompt``.
            RowError: a completion has several turns, and the chat template rewrites earlier ones.
        """
        return self._group(example, turns_apart=False)

    def demonstration(self, example: Example) -> Group | None:
        """A group with its one completion. Where the chat template rewrites earlier turns, each turn
        that has a context of its own is a completion; what all contexts share is the prompt.

        Raises:
            DataError, RowError, ModelError: as for ``prompt``.
        """
        return self._group(example, turns_apart=True)

    def _group(self, example: Example, turns_apart: bool) -> Group | None:
        with self._row(example):
            text = self._prompt_text(example)
            group = self._prompt(example, text)
            if group is None:
                return None
            sequences: list[tuple[int, list[int], list[int], list[bool]]] = []
            for i, answer in enumerate(example.completions):
                parts = self._sequences(example, text, group.prompt.tolist(), answer)
                if len(parts) > 1 and not turns_apart:
                    raise BadRowError(
                        "the chat template rewrites earlier turns of the assistant when later ones are "
                        "added, so a completion of several turns has no log-prob; move its earlier turns "
                        "to the prompt"
                    )
                sequences += [(i, *part) for part in parts]
            contexts = [context for _, context, _, _ in sequences]
            shared = shared_length(contexts) if contexts else len(group.prompt)
            if shared == 0:
                raise BadRowError("the chat template renders nothing in front of the turns")
            group.prompt = group.prompt[:shared]
            for i, context, ids, mask in sequences:
                own = context[shared:]
                if len(own) < self.max_completion_length:
                    group.completions.append(
                        self._completion(example, i, [*own, *ids], [False] * len(own) + mask)
                    )
            self._warn_of_unsampled_prompts(example)
            return group

    def _warn_of_unsampled_prompts(self, example: Example) -> None:
        """Once: turns are trained on after another prompt than completions are sampled from."""
        if self.template.unsampled and not self._warned:
            self._warned = True
            log.warning(
                "%s: row %d: the chat template does not continue its own generation prompt (%s), so the "
                "model is trained on a prompt that it is never sampled from. Write turns as the "
                "template expects them (thoughts in 'reasoning_content'), set its options in a column "
                "'chat_template_kwargs', or use another model.chat_template",
                example.source or "data",
                example.row,
                self.template.unsampled,
            )

    def scoring(self, example: Example) -> Group | None:
        """A group as a reward model reads it: conversations exactly as the chat template renders
        them, with what it adds after the end token; the last token is where the score is read.

        Raises:
            DataError, RowError, ModelError: as for ``prompt``.
        """
        if isinstance(example.prompt, str):
            return self.comparison(example)
        with self._row(example):
            text = self._prompt_text(example)
            group = self._prompt(example, text)
            if group is None:
                return None
            columns = template_columns(example.extra)
            prompt = group.prompt.tolist()
            rendered: list[list[int]] = []
            for answer in example.completions:
                assert isinstance(answer, list), "a conversation has turns as completions"
                full_text = self.template(join_turns(example.prompt, answer), columns)
                rendered.append(whole_ids(self.tokenizer, self.special, prompt, text, full_text))
            shared = shared_length([prompt, *rendered])
            shared = min(shared, *(len(ids) - 1 for ids in rendered)) if rendered else shared
            if shared < 1:
                raise BadRowError("the chat template renders nothing in front of the completions")
            group.prompt = group.prompt[:shared]
            for i, ids in enumerate(rendered):
                own = ids[shared:]
                tail = next((t for t, x in enumerate(reversed(own)) if x in self.stop_ids), 0)
                mask = [k < len(own) - tail for k in range(len(own))]
                group.completions.append(self._completion(example, i, own, mask))
            return group

    def completion(self, ids: Ints, finish: Finish) -> Completion:
        """What a sampler emitted, unchanged."""
        read, hidden = ids.tolist(), self.special.keys() - self.markers
        if self.markers.intersection(read):
            text = self.tokenizer.decode([i for i in read if i not in hidden])
        else:
            text = self.tokenizer.decode(read, skip_special_tokens=True)
        return Completion(ids, np.ones(len(ids), dtype=bool), text.strip(), finish=finish)

    def with_own_prompt(self, group: Group) -> Group:
        """The group with its prompt in this tokenizer and template; the completions stay as they are."""
        messages = group.extra.get("messages")
        if not messages:
            return group
        own = self.prompt(Example(group.id, messages, [], extra=group.extra))
        assert own is not None, "with_own_prompt needs a renderer without limits"
        return replace(group, prompt=own.prompt)

    def rerender(self, group: Group, texts: Sequence[str] | None = None) -> Group:
        """The same conversations as ``scoring`` renders them, with this tokenizer and template.

        Args:
            group: Prompt and completions in other tokens, or in another template.
            texts: The completions of a plain prompt, where they are not those of ``group``.
        """
        messages = cast("list[Message] | None", group.extra.get("messages"))
        answers: list[Text] = (
            [
                c.messages or [{"role": "assistant", "content": _content(group, c)}]
                for c in group.completions
            ]
            if messages
            else list(texts or [c.text for c in group.completions])
        )
        rendered = self.scoring(
            Example(group.id, messages or group.text, answers, extra=group.extra)
        )
        assert rendered is not None, "rerender needs a renderer without limits"
        return rendered


def _content(group: Group, completion: Completion) -> str:
    """The text of a sampled turn, with the beginning of its thoughts where the prompt has it."""
    full_text = group.prefill + completion.text
    begins = not answer_text(group.prefill + "x")
    return full_text if begins and answer_text(full_text) else completion.text


def readable(text: Text) -> str:
    """Text as a person reads it; several turns with their roles."""
    if isinstance(text, str):
        return text
    if len(text) == 1:
        return message_text(text[0])
    return "\n\n".join(f"{m['role']}: {message_text(m)}" for m in text)
