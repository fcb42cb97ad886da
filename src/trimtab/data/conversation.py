"""The text of a row's columns: plain text, conversations and hh-rlhf transcripts, checked and split."""

from __future__ import annotations

import json
import re
from typing import Any, cast

from trimtab.types import Row

Message = dict[str, Any]
"""``role`` and ``content`` (text, a list of text parts, or None), and whatever else a chat template
reads: ``tool_calls``, ``name``, ``reasoning_content``, ..."""
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
        messages = [_read_message(m, name) for m in cast(list[Any], value)]
        if _is_empty(messages[-1]):
            raise BadRowError(f"{name!r} ends with an empty message")
        return messages
    if value is None or value == []:
        raise BadRowError(f"{name!r} is empty")
    raise BadRowError(f"{name!r} must be text or a list of messages, got {type(value).__name__}")


def read_messages(value: object) -> list[Message]:
    """The conversation in a row's column ``messages``: a list, or its JSON text (as in csv files)."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadRowError("'messages' must be a list of messages") from None
    messages = read_text(value, "messages")
    if isinstance(messages, str):
        raise BadRowError("'messages' must be a list of messages")
    return messages


def _read_message(value: object, name: str) -> Message:
    """A message without the keys that are null, which a parquet file fills in for other rows."""
    fields = cast(Row, value) if isinstance(value, dict) else {}
    message = {k: v for k, v in fields.items() if v is not None or k == "content"}
    if not isinstance(message.get("role"), str):
        raise BadRowError(f"{name!r} must hold messages with a text 'role' and 'content'")
    content = message.get("content")
    if isinstance(content, str):
        _check_characters(content, name)
    elif isinstance(content, list):
        message["content"] = [_read_part(p, name) for p in cast(list[Any], content)]
    elif content is not None or message["role"] != "assistant":
        kind = "null" if content is None else type(content).__name__
        raise BadRowError(
            f"{name!r}: 'content' of a turn of the {message['role']} is {kind}; it must be text or a "
            "list of text parts"
        )
    return message


def _read_part(value: object, name: str) -> Row:
    fields = cast(Row, value) if isinstance(value, dict) else {}
    part = {k: v for k, v in fields.items() if v is not None}
    if part.get("type") != "text" or not isinstance(part.get("text"), str):
        kind = part.get("type", type(value).__name__)
        raise BadRowError(
            f"{name!r}: 'content' has a part of type {kind!r}; only text parts can be trained on"
        )
    _check_characters(part["text"], name)
    return part


def content_text(content: object) -> str:
    """The text of a message's content; parts are joined by newlines, None is empty."""
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in cast(list[Row], content))
    return "" if content is None else str(content)


def message_text(message: Message) -> str:
    """A message as a person reads it: its content, then its tool calls.

    >>> message_text({"role": "assistant", "content": None, "tool_calls": [
    ...     {"function": {"name": "weather", "arguments": {"town": "Leeds"}}}]})
    'weather({"town": "Leeds"})'
    """
    lines = [content_text(message.get("content"))]
    for call in cast(list[Row], message.get("tool_calls") or []):
        function = cast(Row, call.get("function", call))
        arguments: Any = function.get("arguments")
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        lines.append(f"{function.get('name')}({arguments})")
    return "\n".join(line for line in lines if line)


def _is_empty(message: Message) -> bool:
    return not message_text(message).strip() and not message.keys() - {"role", "content", "name"}


_RESERVED = frozenset(
    [
        "conversation",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
    ]
)
"""Arguments of ``apply_chat_template`` that are no values for the template."""


def template_columns(row: Row) -> Row:
    """The arguments of ``apply_chat_template`` in a row's columns ``tools`` and
    ``chat_template_kwargs`` (lists and objects, or their JSON text), by keyword.

    Raises:
        BadRowError: a column holds something else.
    """
    tools, options = _unpack(row, "tools"), _unpack(row, "chat_template_kwargs")
    if tools and not (isinstance(tools, list) and all(isinstance(t, dict) for t in tools)):
        raise BadRowError("'tools' must list the JSON schemas of functions")
    if options and not isinstance(options, dict):
        raise BadRowError("'chat_template_kwargs' must be an object of arguments by name")
    # Data does not choose the template, nor how its text is used.
    if reserved := _RESERVED & (options or {}).keys():
        raise BadRowError(
            f"'chat_template_kwargs' may not set {min(reserved)!r}; remove this key from the row"
        )
    return {**(options or {}), **({"tools": tools} if tools else {})}


def _unpack(row: Row, name: str) -> Any:
    value = row.get(name)
    if isinstance(value, str):
        try:
            return json.loads(value or "null")
        except (ValueError, RecursionError):
            raise BadRowError(f"{name!r} is text but not JSON") from None
    return value


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
    # A completion begins with the assistant, and replies to the user or a tool: step back to there.
    shared = min(shared, len(chosen) - 1, len(rejected) - 1)
    while shared and (
        chosen[shared - 1]["role"] in ("assistant", "system")
        or {chosen[shared]["role"], rejected[shared]["role"]} != {"assistant"}
    ):
        shared -= 1
    prompt, a, b = chosen[:shared], chosen[shared:], rejected[shared:]
    if not prompt:
        raise BadRowError("'chosen' and 'rejected' share no prompt")
    return prompt, check_assistant_turns(a, "chosen"), check_assistant_turns(b, "rejected")


def read_prompt(value: object, *, prefill: bool = False) -> Text:
    """The prompt in a row's column ``prompt``.

    Args:
        value: The column.
        prefill: The prompt may end with the beginning of the assistant's turn.
    """
    prompt = read_text(value, "prompt")
    if isinstance(prompt, list) and prompt[-1]["role"] == "assistant" and not prefill:
        raise BadRowError("'prompt' ends with the assistant; it must end with a turn to answer")
    return prompt


def check_assistant_turns(turns: list[Message], name: str) -> list[Message]:
    """``turns``, which must begin and end with the assistant and have no empty turn of it."""
    if turns[0]["role"] != "assistant" or turns[-1]["role"] != "assistant":
        raise BadRowError(f"{name!r} does not begin and end with a turn of the assistant")
    if any(m["role"] == "assistant" and _is_empty(m) for m in turns):
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
    """The turns before the assistant's first reply, and from there to its last.

    A greeting, which replies to nothing, belongs to the prompt.
    """
    turns = range(len(messages))
    spoke = [i for i in turns if messages[i]["role"] == "assistant"]
    if not spoke:
        roles = ", ".join(dict.fromkeys(m["role"] for m in messages))
        raise BadRowError(f"has no turn of the assistant; its roles are {roles}")
    request = next((i for i in turns if messages[i]["role"] not in ("assistant", "system")), None)
    replies = [] if request is None else [i for i in spoke if i > request]
    if not replies or _is_empty(messages[replies[0] - 1]):
        raise BadRowError("has no turn that the assistant replies to")
    return messages[: replies[0]], check_assistant_turns(
        messages[replies[0] : replies[-1] + 1], "messages"
    )
