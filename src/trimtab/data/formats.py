"""TRL's column conventions, plain or conversational, and hh-rlhf transcripts, as examples."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, cast

from trimtab.data.sources import Row, Rows
from trimtab.errors import DataError

Message = dict[str, str]
Text = str | list[Message]

_TURN = re.compile(r"\n\n(Human|Assistant):")


@dataclass(slots=True)
class Example:
    """A row as text: a prompt with its answers."""

    id: str
    prompt: Text
    """Plain text or messages. Empty text: the answer stands alone (language modelling)."""
    answers: list[Text]
    """Same kind as the prompt; none for prompt-only rows."""
    ranks: list[int] | None = None
    """One for each answer: 0 best, equal ranks tie."""
    margins: list[float] | None = None
    """One for each answer: how much better than the next it was judged."""
    extra: dict[str, Any] = field(default_factory=dict[str, Any])
    """The row's other columns."""
    row: int = 1
    """Row number from 1."""
    source: str = ""
    """File or data set, for messages."""


class _BadRowError(Exception):
    """Why a row cannot be used."""


def _text(value: object, name: str) -> Text:
    if isinstance(value, str):
        if not value.strip():
            raise _BadRowError(f"{name!r} is empty")
        return value
    if isinstance(value, list) and value:
        messages: list[Message] = []
        for m in cast(list[Any], value):
            good = (
                isinstance(m, dict)
                and isinstance(m.get("role"), str)
                and isinstance(m.get("content"), str)
            )  # pyright: ignore[reportUnknownMemberType]
            if not good:
                raise _BadRowError(f"{name!r} must hold messages with a text 'role' and 'content'")
            messages.append({"role": m["role"], "content": m["content"]})
        if not messages[-1]["content"].strip():
            raise _BadRowError(f"{name!r} ends with an empty message")
        return messages
    if value is None or value == []:
        raise _BadRowError(f"{name!r} is empty")
    raise _BadRowError(f"{name!r} must be text or a list of messages, got {type(value).__name__}")


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
        {"role": roles[who], "content": said.strip()}
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def _pair(chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """Prompt and answers of two texts that share their beginning."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        a, b = transcript(chosen), transcript(rejected)
        if not a or not b:
            raise _BadRowError(
                "there is no 'prompt', and 'chosen' and 'rejected' are not transcripts that share one"
            )
        return _pair(a, b)
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise _BadRowError("'chosen' and 'rejected' are of different kinds (text and messages)")
    shared = 0
    for x, y in zip(chosen, rejected, strict=False):
        if x != y:
            break
        shared += 1
    # The answer must be the assistant's: go back to the last turn of the user.
    shared = min(shared, len(chosen) - 1, len(rejected) - 1)
    while shared and chosen[shared - 1]["role"] != "user":
        shared -= 1
    prompt, a, b = chosen[:shared], chosen[shared:], rejected[shared:]
    if not prompt:
        raise _BadRowError("'chosen' and 'rejected' share no prompt")
    for name, answer in (("chosen", a), ("rejected", b)):
        if answer[0]["role"] != "assistant" or not answer[-1]["content"].strip():
            raise _BadRowError(f"{name!r} does not end with an answer of the assistant")
    return prompt, a, b


def _answer(value: Text, prompt: Text) -> Text:
    """An answer of the prompt's kind: plain text after messages is an assistant's turn."""
    if isinstance(prompt, list) and isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    if isinstance(prompt, str) and isinstance(value, list):
        raise _BadRowError("the prompt is text but an answer is messages; give both as messages")
    return value


def _columns(rows: Rows, wanted: list[set[str]], task: str) -> None:
    found = set(rows.rows[0][1])
    if not any(w <= found for w in wanted):
        options = "; or ".join("+".join(sorted(w)) for w in wanted)
        raise DataError(
            f"{rows.name}: columns {', '.join(sorted(found))} do not fit {task}, which needs {options}; "
            "rename the columns"
        )


def _need(row: Row, name: str) -> Any:
    if name not in row:
        raise _BadRowError(f"has no {name!r}; its columns are {', '.join(sorted(row))}")
    return row[name]


def _all(rows: Rows, make: Any, used: set[str]) -> list[Example]:
    made: list[Example] = []
    seen: dict[str, int] = {}
    for number, row in rows.rows:
        try:
            key = str(row["id"]) if "id" in row else str(number)
            if key in seen:
                raise _BadRowError(
                    f"id {key!r} was already used by row {seen[key]}; ids must differ"
                )
            example: Example = make(row)
        except _BadRowError as error:
            rows.bad(number, str(error))
            continue
        seen[key] = number
        example.id, example.row, example.source = key, number, rows.name
        example.extra = {k: v for k, v in row.items() if k not in used}
        made.append(example)
    if not made:
        raise DataError(f"{rows.name}: no usable row; first: {rows.dropped[0]}")
    return made


def demonstrations(rows: Rows) -> list[Example]:
    """``messages``, ``prompt``+``completion``, or ``text`` rows.

    Raises:
        DataError: the columns fit none of these, or (strict) a row cannot be used.
    """
    _columns(rows, [{"messages"}, {"prompt", "completion"}, {"text"}], "demonstrations")

    def make(row: Row) -> Example:
        if "messages" in row:
            messages = _text(row["messages"], "messages")
            if isinstance(messages, str):
                raise _BadRowError("'messages' must be a list of messages")
            first = next((i for i, m in enumerate(messages) if m["role"] == "assistant"), None)
            if first is None:
                raise _BadRowError("'messages' has no turn of the assistant")
            return Example("", messages[:first], [messages[first:]])
        if "prompt" in row:
            prompt = _text(row["prompt"], "prompt")
            return Example(
                "", prompt, [_answer(_text(_need(row, "completion"), "completion"), prompt)]
            )
        text = _text(_need(row, "text"), "text")
        if isinstance(text, list):
            raise _BadRowError("'text' must be text")
        turns = transcript(text)
        if turns and turns[-1]["role"] == "assistant":
            first = next(i for i, m in enumerate(turns) if m["role"] == "assistant")
            return Example("", turns[:first], [turns[first:]])
        return Example("", "", [text])

    return _all(rows, make, {"id", "messages", "prompt", "completion", "text"})


def comparisons(rows: Rows) -> list[Example]:
    """``prompt``+``chosen``+``rejected``, ``chosen``+``rejected`` that share their prompt, or
    ``prompt``+``completions``+``ranks``; optional ``margin`` and ``tie``.

    Raises:
        DataError: the columns fit none of these, or (strict) a row cannot be used.
    """
    _columns(rows, [{"chosen", "rejected"}, {"prompt", "completions", "ranks"}], "comparisons")

    def make(row: Row) -> Example:
        if "completions" in row:
            prompt = _text(_need(row, "prompt"), "prompt")
            given: Any = row["completions"]
            if not isinstance(given, list) or len(cast(list[Any], given)) < 2:
                raise _BadRowError("'completions' must list at least two answers")
            answers = [
                _answer(_text(c, f"completions[{i}]"), prompt)
                for i, c in enumerate(cast(list[Any], given))
            ]
            ranks: Any = _need(row, "ranks")
            whole = isinstance(ranks, list) and all(
                isinstance(r, int) for r in cast(list[Any], ranks)
            )
            if not whole or len(cast(list[Any], ranks)) != len(answers):
                raise _BadRowError(f"'ranks' must be {len(answers)} whole numbers, 0 for the best")
            return Example("", prompt, answers, [int(r) for r in cast(list[int], ranks)])
        chosen = _text(_need(row, "chosen"), "chosen")
        rejected = _text(_need(row, "rejected"), "rejected")
        tie = bool(row.get("tie", False))
        if chosen == rejected and not tie:
            raise _BadRowError(
                "'chosen' and 'rejected' are equal; drop the row, or mark it \"tie\": true"
            )
        if row.get("prompt") is not None:
            prompt = _text(row["prompt"], "prompt")
            a, b = _answer(chosen, prompt), _answer(rejected, prompt)
            if isinstance(prompt, list) and isinstance(a, list) and a[: len(prompt)] == prompt:
                # Whole conversations beside their prompt, as some data sets have them.
                a = a[len(prompt) :]
                b = b[len(prompt) :] if isinstance(b, list) else b
        else:
            prompt, a, b = _pair(chosen, rejected)
        margin = row.get("margin") or 0.0
        if not isinstance(margin, int | float) or margin < 0:
            raise _BadRowError(f"'margin' must be a number >= 0, got {margin!r}")
        return Example("", prompt, [a, b], [0, 0] if tie else [0, 1], [float(margin), 0.0])

    used = {"id", "prompt", "chosen", "rejected", "completions", "ranks", "margin", "tie"}
    return _all(rows, make, used)


def prompts(rows: Rows) -> list[Example]:
    """``prompt`` rows, or ``messages`` that end with a turn of the user.

    Raises:
        DataError: the columns fit neither, or (strict) a row cannot be used.
    """
    _columns(rows, [{"prompt"}, {"messages"}, {"chosen", "rejected"}], "prompts")

    def make(row: Row) -> Example:
        if "prompt" in row:
            return Example("", _text(row["prompt"], "prompt"), [])
        if "messages" in row:
            messages = _text(row["messages"], "messages")
            if isinstance(messages, list):
                while messages and messages[-1]["role"] == "assistant":
                    messages = messages[:-1]
                if messages:
                    return Example("", messages, [])
            raise _BadRowError("'messages' has no turn of the user to answer")
        return Example(
            "", _pair(_text(row["chosen"], "chosen"), _text(row["rejected"], "rejected"))[0], []
        )

    return _all(rows, make, {"id", "prompt", "messages", "chosen", "rejected"})
