"""TRL's column conventions, plain or conversational, and hh-rlhf transcripts, as examples."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from trimtab.data.sources import Rows
from trimtab.errors import DataError
from trimtab.types import Row

Message = dict[str, str]
Text = str | list[Message]

COLUMNS = frozenset(
    ("id", "prompt", "messages", "text", "completion", "completions", "chosen", "rejected",
     "ranks", "margin", "tie", "label", "labels", "probs")
)  # fmt: skip
"""Columns that the readers interpret; rows derived from other rows must not copy them."""

_TURN = re.compile(r"\n\n(Human|Assistant):")


@dataclass(slots=True)
class Example:
    """A row as text: a prompt with its completions."""

    id: str
    prompt: Text
    """Plain text or messages; empty text for plain language modelling."""
    completions: list[Text]
    """Same kind as the prompt; none for prompt-only rows."""
    ranks: list[int] | None = None
    """One per completion: 0 is best, equal ranks tie."""
    margins: list[float] | None = None
    """One per completion: how much better than the next it was judged."""
    labels: list[float] | None = None
    """Where the completions are the steps of one solution: how correct each is, in [0, 1]."""
    extra: Row = field(default_factory=dict[str, Any])
    """The row's other columns."""
    row: int = 1
    """Row number from 1."""
    source: str = ""
    """File or data set, for messages."""


class _BadRowError(Exception):
    """Why a row cannot be used."""


def _clean(text: str, name: str) -> str:
    if "\0" in text:
        raise _BadRowError(f"{name!r} holds a NUL character; the data is damaged")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _BadRowError(
            f"{name!r} holds half a surrogate pair at character {error.start}; it is not UTF-8 text"
        ) from None
    return text


def _text(value: object, name: str) -> Text:
    if isinstance(value, str):
        if not value.strip():
            raise _BadRowError(f"{name!r} is empty")
        return _clean(value, name)
    if isinstance(value, list) and value:
        messages: list[Message] = []
        for m in cast(list[Any], value):
            message = cast(Row, m) if isinstance(m, dict) else {}
            role, content = message.get("role"), message.get("content")
            if not isinstance(role, str) or not isinstance(content, str):
                raise _BadRowError(f"{name!r} must hold messages with a text 'role' and 'content'")
            messages.append({"role": role, "content": _clean(content, name)})
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
        {"role": roles[who], "content": content.strip()}
        for who, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def _pair(chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """Prompt and completions of two texts that share their beginning."""
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
    # A completion begins with the assistant: step back to the last turn of the user.
    shared = min(shared, len(chosen) - 1, len(rejected) - 1)
    while shared and chosen[shared - 1]["role"] != "user":
        shared -= 1
    prompt, a, b = chosen[:shared], chosen[shared:], rejected[shared:]
    if not prompt:
        raise _BadRowError("'chosen' and 'rejected' share no prompt")
    return prompt, _spoken(a, "chosen"), _spoken(b, "rejected")


def _prompt(value: object) -> Text:
    prompt = _text(value, "prompt")
    if isinstance(prompt, list) and prompt[-1]["role"] == "assistant":
        raise _BadRowError("'prompt' ends with the assistant; it must end with a turn to answer")
    return prompt


def _spoken(turns: list[Message], name: str) -> list[Message]:
    """Turns that begin and end with the assistant, none of whose turns is empty."""
    if turns[0]["role"] != "assistant" or turns[-1]["role"] != "assistant":
        raise _BadRowError(f"{name!r} does not begin and end with a turn of the assistant")
    if any(m["role"] == "assistant" and not m["content"].strip() for m in turns):
        raise _BadRowError(f"{name!r} has an empty turn of the assistant")
    return turns


def _answer(value: Text, prompt: Text, name: str) -> Text:
    """A completion of the prompt's kind: plain text after messages is an assistant's turn."""
    if isinstance(prompt, str):
        if isinstance(value, list):
            raise _BadRowError(f"'prompt' is text but {name!r} is messages; give both as messages")
        return value
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    if len(value) > len(prompt) and value[: len(prompt)] == prompt:
        # Some datasets repeat the prompt in the completion.
        value = value[len(prompt) :]
    return _spoken(value, name)


def _split(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """The turns before the assistant's first, and from there to its last."""
    spoke = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    if not spoke:
        raise _BadRowError("has no turn of the assistant")
    if spoke[0] == 0 or not messages[spoke[0] - 1]["content"].strip():
        raise _BadRowError("has no turn before the assistant's first")
    return messages[: spoke[0]], _spoken(messages[spoke[0] : spoke[-1] + 1], "messages")


def _number(value: object, name: str) -> float:
    """A margin >= 0; csv gives it as text."""
    try:
        number = 0.0 if value is None or value == "" else float(cast(Any, value))
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number) or number < 0:
        raise _BadRowError(f"{name!r} must be a number >= 0, got {value!r}")
    return number


_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
"""Spellings in lower case; csv gives values as text."""


def _tie(value: object) -> bool:
    spellings = {**_BOOLEANS, "": False, "none": False}
    key = str(value).lower()
    if key not in spellings:
        raise _BadRowError(f"'tie' must be true or false, got {value!r}")
    return spellings[key]


def _columns(
    rows: Rows, wanted: list[set[str]], task: str, advice: str = "rename the columns"
) -> None:
    if not any(w <= row.keys() for _, row in rows.rows for w in wanted):
        columns = sorted({name for _, row in rows.rows for name in row})
        options = "; or ".join("+".join(sorted(w)) for w in wanted)
        raise DataError(
            f"{rows.name}: columns {', '.join(columns)} do not fit {task}, which needs {options}; "
            f"{advice}"
        )


def _need(row: Row, name: str) -> Any:
    if name not in row:
        raise _BadRowError(f"has no {name!r}; its columns are {', '.join(sorted(row))}")
    return row[name]


def _all(rows: Rows, make: Callable[[Row], Example], used: set[str]) -> list[Example]:
    examples: list[Example] = []
    seen: dict[str, int] = {}
    for number, row in rows.rows:
        try:
            key = str(row["id"]) if row.get("id") is not None else str(number)
            if key in seen:
                raise _BadRowError(
                    f"id {key!r} was already used by row {seen[key]}; ids must differ"
                )
            example = make(row)
        except _BadRowError as error:
            rows.bad(number, str(error))
            continue
        seen[key] = number
        example.id, example.row, example.source = key, number, rows.name
        example.extra = {k: v for k, v in row.items() if k not in used}
        examples.append(example)
    if not examples:
        raise DataError(f"{rows.name}: no usable row; first: {rows.dropped[0]}")
    return examples


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
            prompt, answer = _split(messages)
            return Example("", prompt, [answer])
        if "prompt" in row:
            prompt = _prompt(row["prompt"])
            completion = _text(_need(row, "completion"), "completion")
            return Example("", prompt, [_answer(completion, prompt, "completion")])
        text = _text(_need(row, "text"), "text")
        if isinstance(text, list):
            raise _BadRowError("'text' must be text")
        turns = transcript(text)
        if turns and turns[-1]["role"] == "assistant":
            prompt, answer = _split(turns)
            return Example("", prompt, [answer])
        return Example("", "", [text])

    return _all(rows, make, {"id", "messages", "prompt", "completion", "text"})


def _contain(prompt: object, chosen: Text, rejected: Text) -> bool:
    """Whether both are conversations that share a user turn with the text of ``prompt``."""
    if not isinstance(prompt, str) or isinstance(chosen, str) or isinstance(rejected, str):
        return False
    return any(
        m == n and m["role"] == "user" and m["content"] == prompt
        for m, n in zip(chosen, rejected, strict=False)
    )


def _ranked(row: Row) -> Example:
    prompt = _prompt(_need(row, "prompt"))
    listed: Any = row["completions"]
    if not isinstance(listed, list) or len(cast(list[Any], listed)) < 2:
        raise _BadRowError("'completions' must list at least two completions")
    answers: list[Text] = []
    for i, value in enumerate(cast(list[Any], listed)):
        name = f"completions[{i}]"
        answers.append(_answer(_text(value, name), prompt, name))
    raw: Any = _need(row, "ranks")
    ranks = (
        [r for r in cast(list[Any], raw) if type(r) is int and r >= 0]
        if isinstance(raw, list)
        else []
    )
    if len(ranks) != len(answers) or len(ranks) != len(raw):
        raise _BadRowError(f"'ranks' must be {len(answers)} whole numbers, 0 for the best")
    for j, answer in enumerate(answers):
        i = answers.index(answer)
        if ranks[i] != ranks[j]:
            raise _BadRowError(
                f"'completions' {i} and {j} are equal but ranked {ranks[i]} and {ranks[j]}; "
                "drop one, or rank them equal"
            )
    margins: list[float] | None = None
    if row.get("margin") is not None:
        margin: Any = row["margin"]
        if not isinstance(margin, list) or len(cast(list[Any], margin)) != len(answers):
            raise _BadRowError(f"'margin' must be a list of {len(answers)} numbers >= 0")
        margins = [_number(m, "margin") for m in cast(list[Any], margin)]
    return Example("", prompt, answers, ranks, margins)


def comparisons(rows: Rows) -> list[Example]:
    """``prompt``+``chosen``+``rejected``, ``chosen``+``rejected`` that share their prompt, or
    ``prompt``+``completions``+``ranks``; optional ``margin`` and ``tie``.

    Raises:
        DataError: the columns fit none of these, or (strict) a row cannot be used.
    """
    wanted = [{"chosen", "rejected"}, {"prompt", "completions", "ranks"}]
    labelled = any({"completion", "label"} <= row.keys() for _, row in rows.rows)
    advice = "labelled completions are for type: kto" if labelled else "rename the columns"
    _columns(rows, wanted, "comparisons", advice)

    def make(row: Row) -> Example:
        if "completions" in row:
            return _ranked(row)
        chosen = _text(_need(row, "chosen"), "chosen")
        rejected = _text(_need(row, "rejected"), "rejected")
        tie = _tie(row.get("tie"))
        if row.get("prompt") is None or _contain(row["prompt"], chosen, rejected):
            prompt, a, b = _pair(chosen, rejected)
        else:
            prompt = _prompt(row["prompt"])
            a, b = _answer(chosen, prompt, "chosen"), _answer(rejected, prompt, "rejected")
        if a == b and not tie:
            raise _BadRowError(
                "'chosen' and 'rejected' are equal; drop the row, or mark it \"tie\": true"
            )
        margin = _number(row.get("margin"), "margin")
        return Example("", prompt, [a, b], [0, 0] if tie else [0, 1], [margin, 0.0])

    used = {"id", "prompt", "chosen", "rejected", "completions", "ranks", "margin", "tie"}
    return _all(rows, make, used)


def _label(value: object) -> bool:
    """Whether a completion is good."""
    key = str(value).lower()
    if key not in _BOOLEANS:
        raise _BadRowError(f"'label' must be true (good) or false (bad), got {value!r}")
    return _BOOLEANS[key]


def unpaired(rows: Rows) -> list[Example]:
    """``prompt``+``completion``+``label`` rows, label true for a good completion, as one completion
    of rank 0 (good) or 1 (bad); or comparisons, as they are.

    Raises:
        DataError: the columns fit neither, or (strict) a row cannot be used.
    """
    wanted = {"prompt", "completion", "label"}
    if any({"chosen", "rejected"} <= row.keys() or "ranks" in row for _, row in rows.rows):
        return comparisons(rows)
    _columns(rows, [wanted, {"chosen", "rejected"}], "labelled completions")

    def make(row: Row) -> Example:
        prompt = _prompt(_need(row, "prompt"))
        completion = _text(_need(row, "completion"), "completion")
        label = _label(_need(row, "label"))
        return Example("", prompt, [_answer(completion, prompt, "completion")], [int(not label)])

    return _all(rows, make, {"id", *wanted})


def prompts(rows: Rows) -> list[Example]:
    """``prompt`` rows, or ``messages`` that end with a turn of the user.

    Raises:
        DataError: the columns fit neither, or (strict) a row cannot be used.
    """
    _columns(rows, [{"prompt"}, {"messages"}, {"chosen", "rejected"}], "prompts")

    def make(row: Row) -> Example:
        if "prompt" in row:
            return Example("", _prompt(row["prompt"]), [])
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


_STEP_SIGNS = {"+": 1.0, "neutral": 1.0, "-": 0.0}
"""Human signs of a step; neutral counts as correct (2305.20050)."""


def _step_label(value: object, name: str) -> float:
    if isinstance(value, str) and value in _STEP_SIGNS:
        return _STEP_SIGNS[value]
    if isinstance(value, bool | int | float) and 0.0 <= value <= 1.0:
        return float(value)
    raise _BadRowError(
        f'{name} must be true or false, "+", "neutral" or "-", or a number from 0 to 1, got {value!r}'
    )


def steps(rows: Rows) -> list[Example]:
    """``prompt``+``completions``+``labels`` rows: a solution's steps and how correct each is.

    Labels are true or false, "+", "neutral" (counts as correct) or "-", or numbers in [0, 1].

    Raises:
        DataError: the columns do not fit, or (strict) a row cannot be used.
    """
    _columns(rows, [{"prompt", "completions", "labels"}], "stepwise supervision")

    def make(row: Row) -> Example:
        prompt = _prompt(_need(row, "prompt"))
        listed, labels = _need(row, "completions"), _need(row, "labels")
        if not isinstance(listed, list) or not listed:
            raise _BadRowError("'completions' must list the steps of one solution as texts")
        texts: list[Text] = []
        for i, value in enumerate(cast(list[Any], listed)):
            if not isinstance(value, str):
                raise _BadRowError(f"'completions[{i}]' must be text, got {type(value).__name__}")
            texts.append(_text(value, f"completions[{i}]"))
        if not isinstance(labels, list) or len(cast(list[Any], labels)) != len(texts):
            raise _BadRowError(f"'labels' must list {len(texts)} labels, one per step")
        values = [_step_label(x, f"'labels[{i}]'") for i, x in enumerate(cast(list[Any], labels))]
        return Example("", prompt, texts, labels=values)

    return _all(rows, make, {"id", "prompt", "completions", "labels"})
