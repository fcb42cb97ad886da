"""The text of a row's columns: plain text, conversations and hh-rlhf transcripts, checked and split."""

from __future__ import annotations

import re
from typing import Any, cast

from trimtab.types import Row

Message = dict[str, str]
"""``role`` and ``content``."""
Text = str | list[Message]
"""Plain text, or a conversation."""

_TURN = re.compile(r"\n\n(Human|Assistant):")


class BadRowError(Exception):
    """Why a row cannot be used."""


def _check_characters(text: str, name: str) -> str:
    if "\0" in text:
        raise BadRowError(f"{name!r} holds a NUL character; the data is damaged")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRowError(
            f"{name!r} holds half a surrogate pair at character {error.start}; it is not UTF-8 text"
        ) from None
    return text


def read_text(value: object, name: str) -> Text:
    """The text or messages in a row's column ``name``.

    Raises:
        BadRowError: it is empty, or neither text nor messages.
    """
    if isinstance(value, str):
        if not value.strip():
            raise BadRowError(f"{name!r} is empty")
        return _check_characters(value, name)
    if isinstance(value, list) and value:
        messages: list[Message] = []
        for m in cast(list[Any], value):
            message = cast(Row, m) if isinstance(m, dict) else {}
            role, content = message.get("role"), message.get("content")
            if not isinstance(role, str) or not isinstance(content, str):
                raise BadRowError(f"{name!r} must hold messages with a text 'role' and 'content'")
            messages.append({"role": role, "content": _check_characters(content, name)})
        if not messages[-1]["content"].strip():
            raise BadRowError(f"{name!r} ends with an empty message")
        return messages
    if value is None or value == []:
        raise BadRowError(f"{name!r} is empty")
    raise BadRowError(f"{name!r} must be text or a list of messages, got {type(value).__name__}")


def transcript(text: str) -> list[Message]:
    """Messages of a "\\n\\nHuman: ... \\n\\nAssistant: ..." transcript; empty if it is none.

    >>> transcript("\\n\\nHuman: hi\\n\\nAssistant: yes")[1]
    {'role': 'assistant', 'content': 'yes'}
    """
    if not text.startswith("\n\nHuman:"):
        return []
    parts = _TURN.split(text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[who], "content": content.strip()}
        for who, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def split_pair(chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """Shared prompt, chosen and rejected completion of two conversations that begin alike."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        a, b = transcript(chosen), transcript(rejected)
        if not a or not b:
            raise BadRowError(
                "there is no 'prompt', and 'chosen' and 'rejected' are not transcripts that share one"
            )
        return split_pair(a, b)
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise BadRowError("'chosen' and 'rejected' are of different kinds (text and messages)")
    shared = 0
    for x, y in zip(chosen, rejected, strict=False):
        if x != y:
            break
        shared += 1
    # A completion begins with the assistant: step back to the last turn of the user.
    shared = min(shared, len(chosen) - 1, len(rejected) - 1)
    while shared and chosen[shared - 1]["role"] != "user":
        shared -= 1
    prompt, a, b = chosen[:shared], chosen[shared:], rejected[shared:]
    if not prompt:
        raise BadRowError("'chosen' and 'rejected' share no prompt")
    return prompt, check_assistant_turns(a, "chosen"), check_assistant_turns(b, "rejected")


def read_prompt(value: object) -> Text:
    """The prompt in a row's column ``prompt``; it must not end with a turn of the assistant."""
    prompt = read_text(value, "prompt")
    if isinstance(prompt, list) and prompt[-1]["role"] == "assistant":
        raise BadRowError("'prompt' ends with the assistant; it must end with a turn to answer")
    return prompt


def check_assistant_turns(turns: list[Message], name: str) -> list[Message]:
    """``turns``, which must begin and end with the assistant and have no empty turn of it."""
    if turns[0]["role"] != "assistant" or turns[-1]["role"] != "assistant":
        raise BadRowError(f"{name!r} does not begin and end with a turn of the assistant")
    if any(m["role"] == "assistant" and not m["content"].strip() for m in turns):
        raise BadRowError(f"{name!r} has an empty turn of the assistant")
    return turns


def read_completion(value: Text, prompt: Text, name: str) -> Text:
    """A completion of the prompt's kind: plain text after messages is an assistant's turn."""
    if isinstance(prompt, str):
        if isinstance(value, list):
            raise BadRowError(f"'prompt' is text but {name!r} is messages; give both as messages")
        return value
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    if len(value) > len(prompt) and value[: len(prompt)] == prompt:
        # Some datasets repeat the prompt in the completion.
        value = value[len(prompt) :]
    return check_assistant_turns(value, name)


def split_conversation(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """The turns before the assistant's first, and from there to its last."""
    spoke = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    if not spoke:
        raise BadRowError("has no turn of the assistant")
    if spoke[0] == 0 or not messages[spoke[0] - 1]["content"].strip():
        raise BadRowError("has no turn before the assistant's first")
    return messages[: spoke[0]], check_assistant_turns(
        messages[spoke[0] : spoke[-1] + 1], "messages"
    )
