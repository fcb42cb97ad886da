"""Chat templates: conversations as the text that transformers' ``apply_chat_template`` renders."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal, cast

from trimtab.data.conversation import BadRowError, Message, content_text
from trimtab.data.piece_tokens import Piece, shared_length, shared_text
from trimtab.data.template_cost import is_cheap
from trimtab.data.template_process import REFUSALS, render, trusted
from trimtab.errors import ModelError
from trimtab.types import Row

_PROBE = "probe of content"


class ChatTemplate:
    """The chat template of a tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.unsampled = ""
        """How the first turn that does not continue its generation prompt differs from it."""
        self._known_kinds: dict[str, tuple[bool, bool]] = {}

    def __call__(
        self,
        messages: Sequence[Message],
        columns: Row,
        end: Literal["closed", "generate", "prefill"] = "closed",
    ) -> str:
        """Render a conversation.

        Args:
            messages: The conversation.
            columns: Other arguments of ``apply_chat_template``: ``tools``, or the template's own.
            end: "generate" adds the generation prompt, "prefill" leaves the last turn open.

        Raises:
            ModelError: the tokenizer has no chat template, or the template was stopped because it
                takes too much time or memory.
            BadRowError: the template refuses the conversation.
        """
        if not self.tokenizer.chat_template:
            raise ModelError(
                f"the data is conversational but the tokenizer {self.tokenizer.name_or_path!r} has no chat "
                'template; give one with model.chat_template (a Jinja file, or "plain")'
            )
        try:
            return self._render([self._fit(m) for m in messages], columns, end)
        except ModelError:
            raise
        except REFUSALS as error:
            if any(m.get("content") is None for m in messages):
                # Some templates read null content as text.
                filled = [
                    m if m.get("content") is not None else {**m, "content": ""} for m in messages
                ]
                return self(filled, columns, end)
            why = str(error) or type(error).__name__
            raise BadRowError(f"the chat template refuses the conversation: {why}") from None

    def _render(self, messages: list[Message], columns: Row, end: str) -> str:
        ends = {
            "add_generation_prompt": end == "generate",
            "continue_final_message": end == "prefill",
        }
        apply = self.tokenizer.apply_chat_template
        # A class with a method of its own (mistral-common) renders no template.
        if apply.__module__ == "transformers.tokenization_utils_base":
            template = self.tokenizer.get_chat_template(None, columns.get("tools"))
            if not trusted() and not is_cheap(template, messages, columns):
                call = {**self.tokenizer.special_tokens_map, **columns, **ends}
                call.update(conversations=[messages], chat_template=template)
                return render(self.tokenizer.name_or_path, call)
        return cast(str, apply(messages, tokenize=False, **ends, **columns))

    def _kinds(self, role: str) -> tuple[bool, bool]:
        """Whether the template renders text, and lists of parts, as content of ``role``."""
        if role not in self._known_kinds:
            text: object = _PROBE
            self._known_kinds[role] = (
                self._renders(role, text),
                self._renders(role, [{"type": "text", "text": text}]),
            )
        return self._known_kinds[role]

    def _renders(self, role: str, content: object) -> bool:
        user: Message = {"role": "user", "content": "a"}
        probe: Message = {"role": role, "content": content}
        messages = (
            [probe] if role == "user" else [probe, user] if role == "system" else [user, probe]
        )
        try:
            text = self._render(messages, {}, "closed")
        except ModelError:
            raise
        except REFUSALS:
            return False
        # A template that prints a list as it is gives "[{'type': 'text', ...".
        return _PROBE in text and f"'{_PROBE}'" not in text and f'"{_PROBE}"' not in text

    def _fit(self, message: Message) -> Message:
        """The message with its content as text or parts, whichever the template can render."""
        content = message.get("content")
        if isinstance(content, list) and not self._kinds(message["role"])[1]:
            return {**message, "content": content_text(cast(object, content))}
        if isinstance(content, str) and self._kinds(message["role"]) == (False, True):
            return {**message, "content": [{"type": "text", "text": content}]}
        return message

    def completions(
        self,
        prompt: list[Message],
        completion: list[Message],
        columns: Row,
        before: str,
        ends: Collection[str],
    ) -> list[list[Piece]]:
        """The assistant's turns with their contexts, each as the template renders it when it is the
        last one: a prompt, then turns and what is between them.

        Turns whose context contains the earlier ones unchanged are one list. A template that
        rewrites earlier turns (drops their thoughts, say) begins a new list at each such turn. Where
        the rendered turn does not continue the generation prompt (which begins a thought that the turn
        does not have, say), its prompt ends where the two differ.

        Args:
            prompt: The turns before; where the last is the assistant's, it is continued.
            completion: Turns that begin and end with the assistant.
            columns: As for ``__call__``.
            before: ``prompt`` as rendered.
            ends: Tokens that end a turn, as text; what the template adds after them is not trained on.

        Raises:
            BadRowError: the template refuses the conversation.
        """
        lists: list[list[Piece]] = []
        messages = join_turns(prompt, completion)
        first = len(messages) - len(completion)
        for i in range(first, len(messages)):
            if messages[i]["role"] != "assistant":
                continue
            if i > first:
                before = self(messages[:i], columns, "generate")
            after = self(messages[: i + 1], columns)
            if not after.startswith(before):
                difference = _difference(before, after)
                before = after[: shared_text(self.tokenizer, before, after)]
                if not before.startswith(self(messages[:i], columns)):
                    raise BadRowError(
                        f"the chat template renders the turns before turn {i + 1} otherwise once it is "
                        f"added ({difference}); use another model.chat_template"
                    )
                self.unsampled = self.unsampled or difference
            if after == before:
                raise BadRowError(f"the chat template renders nothing for turn {i + 1}")
            turn = _cut(after[len(before) :], ends)
            so_far = "".join(p.text for p in lists[-1]) if lists else ""
            if lists and before.startswith(so_far):
                lists[-1] += [Piece(before[len(so_far) :], False), Piece(turn, True)]
            else:
                lists.append([Piece(before, False), Piece(turn, True)])
        return lists


def join_turns(prompt: list[Message], completion: list[Message]) -> list[Message]:
    """One conversation; a completion of a prompt that ends with the assistant continues that turn."""
    if prompt[-1]["role"] != "assistant":
        return [*prompt, *completion]
    first = completion[0]
    content = content_text(prompt[-1].get("content")) + content_text(first.get("content"))
    return [*prompt[:-1], {**prompt[-1], **first, "content": content}, *completion[1:]]


def _cut(turn: str, ends: Collection[str]) -> str:
    """``turn`` up to its last end token; all of it where it has none."""
    last = max((turn.rfind(e) + len(e) for e in ends if e in turn), default=len(turn))
    return turn[:last]


def _difference(before: str, after: str) -> str:
    same = shared_length([before, after])
    return f"sampling continues {before[same:][-40:]!r}, the rendered text has {after[same : same + 40]!r}"
