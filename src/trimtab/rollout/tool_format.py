"""Conversations with tools in a model's own format: prompts, tokens between turns, calls in a reply."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Literal, cast

from trimtab.data.conversation import BadRowError, Message, content_text, template_columns
from trimtab.data.piece_tokens import continuation, raw_ids
from trimtab.data.render import Renderer
from trimtab.data.thoughts import TOKENS
from trimtab.errors import ModelError
from trimtab.types import Row

TOOL_TOKENS = ("<tool_call>", "</tool_call>")
_CALL = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
_PROBE = "probe_of_tools"
_INSTRUCTIONS = (
    "You can call these functions:\n<tools>\n{schemas}\n</tools>\n"
    "To call one, write its name and its arguments as JSON between the two tags:\n"
    '<tool_call>\n{{"name": "NAME", "arguments": {{...}}}}\n</tool_call>'
)


def function_call(name: str, arguments: Row) -> Row:
    """A tool call as chat templates read it: arguments are an object, not text."""
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def instructions(tools: Sequence[Row]) -> str:
    """The system message that offers tools where the chat template does not.

    Args:
        tools: Their JSON schemas.
    """
    schemas = "\n".join(json.dumps(t, ensure_ascii=False) for t in tools)
    return _INSTRUCTIONS.format(schemas=schemas)


class ToolFormat:
    """Renders conversations with tools by the tokenizer's chat template, and reads replies.

    What the template does not render (a list of tools, calls, results) is written into the content in
    the <tool_call> format of Hermes and Qwen.

    Raises:
        ModelError: the tokenizer has no chat template, or its response template is invalid.
    """

    def __init__(self, renderer: Renderer) -> None:
        self.renderer, self.tokenizer = renderer, renderer.tokenizer
        self._response_template: Any = getattr(self.tokenizer, "response_template", None)
        if self._response_template:
            from transformers.utils.chat_parsing.response_templates import load_response_template

            try:
                load_response_template(self._response_template)
            except ValueError as error:
                raise ModelError(f"the tokenizer's response_template: {error}") from None
        self.ends = tuple(self.tokenizer.convert_ids_to_tokens(list(renderer.stop_ids)))
        user: Message = {"role": "user", "content": "a"}
        call: Message = {
            "role": "assistant",
            "content": "",
            "tool_calls": [function_call(_PROBE, {})],
        }
        result: Message = {"role": "tool", "name": "f", "content": _PROBE}
        schema = {
            "name": _PROBE,
            "description": "b",
            "parameters": {"type": "object", "properties": {}},
        }
        tools = {"tools": [{"type": "function", "function": schema}]}
        self._renders_tools = self._renders([user], tools)
        self._renders_calls = self._renders([user, call], {})
        turn = call if self._renders_calls else {"role": "assistant", "content": "b"}
        self._renders_results = self._renders([user, turn, result], {}) and (
            self._count([user, turn, result]) == 1 + self._count([user, turn])
        )

    def _count(self, messages: Sequence[Message]) -> int:
        return self.renderer.template(messages, {}).count(_PROBE)

    def _renders(self, messages: Sequence[Message], columns: Row) -> bool:
        try:
            return _PROBE in self.renderer.template(messages, columns)
        except BadRowError:
            return False

    def text(
        self, messages: Sequence[Message], columns: Row, end: Literal["closed", "generate"]
    ) -> str:
        """The conversation as the template renders it.

        Args:
            messages: Replies of the model may have their own text in "raw".
            columns: A row's ``tools`` and ``chat_template_kwargs``.
            end: "generate" adds the generation prompt.

        Raises:
            BadRowError: the template refuses the conversation.
        """
        options = template_columns(columns)
        fitted = [self._fit(m) for m in messages]
        tools = cast("list[Row] | None", options.get("tools"))
        if tools and not self._renders_tools:
            text = instructions(tools)
            if fitted and fitted[0]["role"] == "system":
                text = f"{content_text(fitted.pop(0).get('content'))}\n\n{text}"
            fitted = [{"role": "system", "content": text}, *fitted]
            options = {k: v for k, v in options.items() if k != "tools"}
        return self.renderer.template(fitted, options, end)

    def _fit(self, message: Message) -> Message:
        plain = {k: v for k, v in message.items() if k != "raw"}
        if message["role"] == "assistant" and message.get("tool_calls") and not self._renders_calls:
            text = message.get("raw") or "\n".join(
                [content_text(message.get("content")), *map(_call_text, message["tool_calls"])]
            )
            return {"role": "assistant", "content": text.strip()}
        if message["role"] == "tool" and not self._renders_results:
            text = f"<tool_response>\n{content_text(message.get('content'))}\n</tool_response>"
            return {"role": "user", "content": text}
        return plain

    def context(self, messages: Sequence[Message], columns: Row) -> list[int]:
        """Ids of a first context, generation prompt included; raises as ``text``."""
        return raw_ids(self.tokenizer, self.text(messages, columns, "generate"))

    def between(
        self, messages: Sequence[Message], new: Sequence[Message], columns: Row, ended: bool
    ) -> list[int] | None:
        """Ids after a turn of the model, up to its next one.

        Args:
            messages: The conversation so far, the model's turn last.
            new: Messages after it: results of tools, messages of the user.
            columns: As for ``text``.
            ended: Whether the turn's tokens include its end token.

        Returns:
            None if the template renders ``messages`` in another way once ``new`` is added (drops
            thoughts, say), so that the model's tokens are no part of the new context.

        Raises:
            BadRowError: the template refuses the conversation.
        """
        before = self.text(messages, columns, "closed")
        after = self.text([*messages, *new], columns, "generate")
        last = max((before.rfind(end) + len(end) for end in self.ends if end in before), default=0)
        if last == 0 or before[last:].strip():
            last = len(before)  # the template ends turns with no token
        if not after.startswith(before[:last]):
            return None
        ending = next((e for e in self.ends if before[:last].endswith(e)), "")
        start = last if ended else last - len(ending)
        return continuation(self.tokenizer, after[start:])[0]

    def reply(self, prompt: Sequence[int], ids: Sequence[int], columns: Row) -> Message:
        """The message in the ids that the model emitted after ``prompt``; its text is in "raw".

        Calls are read by the tokenizer's response template, if it has one, or else as JSON between
        <tool_call> tags. A call that cannot be read is text.
        """
        special, stop = self.renderer.special, set(self.renderer.stop_ids)
        visible = [i for i in ids if i not in special or special[i] in (*TOKENS, *TOOL_TOKENS)]
        text = str(self.tokenizer.decode([i for i in visible if i not in stop])).strip()
        message: Message = {"role": "assistant", "content": text, "raw": text}
        if self._response_template:
            message |= self._parsed(list(prompt), list(ids), columns)
        elif calls := read_calls(text):
            message |= {"content": text[: text.index("<tool_call>")].strip(), "tool_calls": calls}
        return message

    def _parsed(self, prompt: list[int], ids: list[int], columns: Row) -> Message:
        tools = template_columns(columns).get("tools")
        try:
            parsed = cast(Row, self.tokenizer.parse_response(ids, prefix=prompt, tools=tools))
        except (ValueError, KeyError, TypeError):
            return {}
        parsed = {k: v for k, v in parsed.items() if v is not None and k != "role"}
        calls = [call for call in map(normal_call, parsed.pop("tool_calls", None) or []) if call]
        return parsed | ({"tool_calls": calls} if calls else {})


def _call_text(call: Row) -> str:
    return f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"


def read_calls(text: str) -> list[Row]:
    """Calls between <tool_call> tags; empty if one of them cannot be read.

    >>> read_calls('<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>')
    [{'type': 'function', 'function': {'name': 'add', 'arguments': {'a': 1}}}]
    >>> read_calls('<tool_call>add(1)</tool_call>')
    []
    """
    calls: list[Row] = []
    for match in _CALL.finditer(text):
        try:
            call = normal_call(json.loads(match[1]))
        except (ValueError, RecursionError):
            call = None
        if call is None:
            return []
        calls.append(call)
    return calls


def normal_call(call: Any) -> Row | None:
    """A call in one form, whether its arguments are an object or JSON text; None if it is no call."""
    if not isinstance(call, dict):
        return None
    fields = cast(Row, call)
    function = cast("Row | Any", fields.get("function", fields))
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return None
    arguments: Any = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(arguments, dict):
        return None
    return function_call(function["name"], cast(Row, arguments))
