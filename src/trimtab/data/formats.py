"""TRL's column conventions, plain or conversational, and hh-rlhf transcripts, as examples.

Rows of other public schemas are turned into these columns first (``trimtab.data.schemas``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from trimtab.data.conversation import (
    BadRowError,
    Text,
    read_completion,
    read_messages,
    read_prompt,
    read_text,
    split_conversation,
    split_pair,
    transcript,
)
from trimtab.data.schemas import recognise
from trimtab.data.sources import Rows
from trimtab.errors import DataError
from trimtab.types import Row

COLUMNS = frozenset(
    (
        "id",
        "prompt",
        "messages",
        "text",
        "completion",
        "completions",
        "chosen",
        "rejected",
        "ranks",
        "margin",
        "tie",
        "label",
        "labels",
        "probs",
    )
)
"""Columns that the readers interpret; rows derived from other rows must not copy them."""


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


def _number(value: object, name: str, least: float = 0.0) -> float:
    """A number that is at least ``least``, 0 if it is missing; csv gives it as text."""
    try:
        number = 0.0 if value is None or value == "" else float(cast(Any, value))
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number) or number < least:
        bound = f" >= {least:g}" if math.isfinite(least) else ""
        raise BadRowError(f"{name!r} must be a number{bound}, got {value!r}")
    return number


_BOOLEANS = {
    **dict.fromkeys(("true", "1", "1.0", "yes", "good", "desirable"), True),
    **dict.fromkeys(("false", "0", "0.0", "no", "bad", "undesirable"), False),
}
"""Spellings in lower case; csv gives values as text, and pandas gives flags as floats."""


def _tie(value: object) -> bool:
    spellings = {**_BOOLEANS, "": False, "none": False}
    key = str(value).lower()
    if key not in spellings:
        raise BadRowError(f"'tie' must be true or false, got {value!r}")
    return spellings[key]


def _need(row: Row, name: str) -> Any:
    if name not in row:
        raise BadRowError(f"has no {name!r}; its columns are {', '.join(sorted(row))}")
    return row[name]


def _all(rows: Rows, make: Callable[[Row], Example], used: set[str]) -> list[Example]:
    examples: list[Example] = []
    seen: dict[str, int] = {}
    for number, row in rows.rows:
        try:
            key = str(row["id"]) if row.get("id") is not None else str(number)
            if key in seen:
                raise BadRowError(
                    f"id {key!r} was already used by row {seen[key]}; ids must differ"
                )
            example = make(row)
        except BadRowError as error:
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
    rows = recognise(rows, "demonstrations")

    def make(row: Row) -> Example:
        if "messages" in row:
            messages = read_messages(row["messages"])
            prompt, answer = split_conversation(messages)
            return Example("", prompt, [answer])
        if "prompt" in row:
            prompt = read_prompt(row["prompt"], prefill=True)
            completion = read_text(_need(row, "completion"), "completion")
            return Example("", prompt, [read_completion(completion, prompt, "completion")])
        text = read_text(_need(row, "text"), "text")
        if isinstance(text, list):
            raise BadRowError("'text' must be text")
        turns = transcript(text)
        if turns and turns[-1]["role"] == "assistant":
            prompt, answer = split_conversation(turns)
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


def _ranks(value: object, count: int) -> list[int]:
    """One rank per completion, the lowest for the best; a dataset may write them as floats."""
    raw: list[Any] = cast(list[Any], value) if isinstance(value, list) else []
    numbers = [r for r in raw if type(r) in (int, float) and math.isfinite(r) and r >= 0]
    if len(numbers) != count or len(raw) != count:
        raise BadRowError(f"'ranks' must be {count} numbers >= 0, the lowest for the best")
    if all(r == int(r) for r in numbers):
        return [int(r) for r in numbers]
    places = sorted(set(numbers))
    return [places.index(r) for r in numbers]


def _margin(row: Row) -> float:
    """``margin``, or the difference of ``score_chosen`` and ``score_rejected``."""
    if row.get("margin") not in (None, "") or any(
        row.get(k) in (None, "") for k in ("score_chosen", "score_rejected")
    ):
        return _number(row.get("margin"), "margin")
    chosen, rejected = (
        _number(row[k], k, least=-math.inf) for k in ("score_chosen", "score_rejected")
    )
    if chosen < rejected:
        raise BadRowError(
            f"'score_chosen' {chosen:g} is below 'score_rejected' {rejected:g}; swap the completions, or "
            "remove the scores"
        )
    return chosen - rejected


def _ranked(row: Row) -> Example:
    prompt = read_prompt(_need(row, "prompt"))
    listed: Any = row["completions"]
    if not isinstance(listed, list) or len(cast(list[Any], listed)) < 2:
        raise BadRowError("'completions' must list at least two completions")
    answers: list[Text] = []
    for i, value in enumerate(cast(list[Any], listed)):
        name = f"completions[{i}]"
        answers.append(read_completion(read_text(value, name), prompt, name))
    ranks = _ranks(_need(row, "ranks"), len(answers))
    for j, answer in enumerate(answers):
        i = answers.index(answer)
        if ranks[i] != ranks[j]:
            raise BadRowError(
                f"'completions' {i} and {j} are equal but ranked {ranks[i]} and {ranks[j]}; "
                "drop one, or rank them equal"
            )
    margins: list[float] | None = None
    if row.get("margin") is not None:
        margin: Any = row["margin"]
        if not isinstance(margin, list) or len(cast(list[Any], margin)) != len(answers):
            raise BadRowError(f"'margin' must be a list of {len(answers)} numbers >= 0")
        margins = [_number(m, "margin") for m in cast(list[Any], margin)]
    return Example("", prompt, answers, ranks, margins)


def comparisons(rows: Rows) -> list[Example]:
    """``prompt``+``chosen``+``rejected``, ``chosen``+``rejected`` that share their prompt, or
    ``prompt``+``completions``+``ranks``; optional ``margin`` and ``tie``.

    Raises:
        DataError: the columns fit none of these, or (strict) a row cannot be used.
    """
    rows = recognise(rows, "comparisons")

    def make(row: Row) -> Example:
        if "completions" in row:
            return _ranked(row)
        chosen = read_text(_need(row, "chosen"), "chosen")
        rejected = read_text(_need(row, "rejected"), "rejected")
        tie = _tie(row.get("tie"))
        if row.get("prompt") is None or _contain(row["prompt"], chosen, rejected):
            prompt, a, b = split_pair(chosen, rejected)
        else:
            prompt = read_prompt(row["prompt"], prefill=True)
            a, b = (
                read_completion(chosen, prompt, "chosen"),
                read_completion(rejected, prompt, "rejected"),
            )
        if a == b and not tie:
            raise BadRowError(
                "'chosen' and 'rejected' are equal; drop the row, or mark it \"tie\": true"
            )
        margin = 0.0 if tie else _margin(row)
        return Example("", prompt, [a, b], [0, 0] if tie else [0, 1], [margin, 0.0])

    used = {"id", "prompt", "chosen", "rejected", "completions", "ranks", "margin", "tie"}
    return _all(rows, make, used)


def _label(value: object) -> bool:
    """Whether a completion is good."""
    key = str(value).strip().lower()
    if key not in _BOOLEANS:
        raise BadRowError(f"'label' must be true (good) or false (bad), got {value!r}")
    return _BOOLEANS[key]


def unpaired(rows: Rows) -> list[Example]:
    """``prompt``+``completion``+``label`` rows, label true for a good completion, as one completion
    of rank 0 (good) or 1 (bad); or comparisons, as they are.

    Raises:
        DataError: the columns fit neither, or (strict) a row cannot be used.
    """
    rows = recognise(rows, "labels")
    if any({"chosen", "rejected"} <= row.keys() or "ranks" in row for _, row in rows.rows):
        return comparisons(rows)

    def make(row: Row) -> Example:
        prompt = read_prompt(_need(row, "prompt"))
        completion = read_text(_need(row, "completion"), "completion")
        label = _label(_need(row, "label"))
        return Example(
            "", prompt, [read_completion(completion, prompt, "completion")], [int(not label)]
        )

    return _all(rows, make, {"id", "prompt", "completion", "label"})


def prompts(rows: Rows) -> list[Example]:
    """``prompt`` rows, or ``messages`` that end with a turn of the user.

    Raises:
        DataError: the columns fit neither, or (strict) a row cannot be used.
    """
    rows = recognise(rows, "prompts")

    def make(row: Row) -> Example:
        if "prompt" in row:
            return Example("", read_prompt(row["prompt"]), [])
        if "messages" in row:
            messages = read_messages(row["messages"])
            while messages and messages[-1]["role"] == "assistant":
                messages = messages[:-1]
            if messages:
                return Example("", messages, [])
            raise BadRowError("'messages' has no turn of the user to answer")
        return Example(
            "",
            split_pair(read_text(row["chosen"], "chosen"), read_text(row["rejected"], "rejected"))[
                0
            ],
            [],
        )

    return _all(rows, make, {"id", "prompt", "messages", "chosen", "rejected"})


_STEP_SIGNS = {"+": 1.0, "neutral": 1.0, "-": 0.0}
"""Human signs of a step; neutral counts as correct (2305.20050)."""


def _step_label(value: object, name: str) -> float:
    if isinstance(value, str) and value in _STEP_SIGNS:
        return _STEP_SIGNS[value]
    if isinstance(value, bool | int | float) and 0.0 <= value <= 1.0:
        return float(value)
    raise BadRowError(
        f'{name} must be true or false, "+", "neutral" or "-", or a number from 0 to 1, got {value!r}'
    )


def steps(rows: Rows) -> list[Example]:
    """``prompt``+``completions``+``labels`` rows: a solution's steps and how correct each is.

    Labels are true or false, "+", "neutral" (counts as correct) or "-", or numbers in [0, 1].

    Raises:
        DataError: the columns do not fit, or (strict) a row cannot be used.
    """
    wanted = {"prompt", "completions", "labels"}
    if not any(wanted <= row.keys() for _, row in rows.rows):
        columns = sorted({name for _, row in rows.rows for name in row})
        raise DataError(
            f"{rows.name}: columns {', '.join(columns)} do not fit stepwise supervision, which needs "
            f"{'+'.join(sorted(wanted))}; rename the columns"
        )

    def make(row: Row) -> Example:
        prompt = read_prompt(_need(row, "prompt"))
        listed, labels = _need(row, "completions"), _need(row, "labels")
        if not isinstance(listed, list) or not listed:
            raise BadRowError("'completions' must list the steps of one solution as texts")
        texts: list[Text] = []
        for i, value in enumerate(cast(list[Any], listed)):
            if not isinstance(value, str):
                raise BadRowError(f"'completions[{i}]' must be text, got {type(value).__name__}")
            texts.append(read_text(value, f"completions[{i}]"))
        if not isinstance(labels, list) or len(cast(list[Any], labels)) != len(texts):
            raise BadRowError(f"'labels' must list {len(texts)} labels, one per step")
        values = [_step_label(x, f"'labels[{i}]'") for i, x in enumerate(cast(list[Any], labels))]
        return Example("", prompt, texts, labels=values)

    return _all(rows, make, {"id", "prompt", "completions", "labels"})
