"""Rows of conversations, instructions and questions as TRL's columns, or why they cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

from trimtab.data.conversation import BadRowError, Message
from trimtab.data.schema_fields import objects_of, text_of, user_turn, value_of
from trimtab.types import Row

_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "model", "chatgpt", "bing", "bard"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
    "system": "system",
}


def _turn(turn: Row) -> Message:
    """A turn with ``from`` and ``value``, or one that has a ``role`` already."""
    if "role" in turn:
        return turn
    who, text = turn.get("from"), turn.get("value")
    if who == "function_call":
        try:
            call = json.loads(cast(str, text))
        except (TypeError, ValueError, RecursionError):
            raise BadRowError("a turn from 'function_call' must hold a call as JSON") from None
        calls = call if isinstance(call, list) else [call]
        return {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": c} for c in calls],
        }
    if who not in _ROLES or not isinstance(text, str):
        raise BadRowError(
            f"a turn from {who!r} cannot be read: 'from' must be one of {', '.join(_ROLES)} or "
            "function_call, and 'value' text"
        )
    return {"role": _ROLES[who], "content": text}


def conversation(name: str) -> Callable[[Row], Row]:
    """Conversations in column ``name``, after the column ``system``."""

    def read(row: Row) -> Row:
        messages = [_turn(t) for t in objects_of(row, name)]
        if row.get("system"):
            messages.insert(0, {"role": "system", "content": text_of(row, "system")})
        return {"messages": messages}

    return read


def _answer(row: Row, name: str) -> Any:
    """A completion as text, as one turn or as several."""
    value = value_of(row, name)
    if isinstance(value, dict):
        return [_turn(cast(Row, value))]
    return [_turn(t) for t in objects_of(row, name)] if isinstance(value, list) else value


def conversation_pair(row: Row) -> Row:
    """A conversation and its next turn, chosen and rejected."""

    prompt = conversation("conversations")(row)["messages"]
    return {
        "prompt": prompt,
        "chosen": _answer(row, "chosen"),
        "rejected": _answer(row, "rejected"),
    }


def conversation_label(row: Row) -> Row:
    """A conversation whose last turn is good or bad."""

    messages = conversation("conversations")(row)["messages"]
    return {"prompt": messages[:-1], "completion": messages[-1:], "label": row.get("kto_tag")}


def instruction_prompt(row: Row) -> list[Message]:
    """The instruction with its input or context, as a turn of the user."""

    text = text_of(row, "instruction")
    more = next((row[k] for k in ("input", "context") if row.get(k)), "")
    return user_turn(f"{text}\n\n{more}" if more else text, row, "system")


def instructed(completion: str) -> Callable[[Row], Row]:
    """An instruction and its completion in column ``completion``."""

    return lambda row: {"prompt": instruction_prompt(row), "completion": text_of(row, completion)}


def instruction_pair(row: Row) -> Row:
    """Chosen and rejected completion of an instruction."""
    pair = {"chosen": _answer(row, "chosen"), "rejected": _answer(row, "rejected")}
    return {"prompt": instruction_prompt(row), **pair}


def instruction_label(row: Row) -> Row:
    """The completion of an instruction, good or bad."""
    return {**instructed("output")(row), "label": row.get("kto_tag")}


def question(prompt: str, completion: str) -> Callable[[Row], Row]:
    """A question in column ``prompt`` and its completion."""

    return lambda row: {
        "prompt": user_turn(text_of(row, prompt), row, "system", "system_prompt"),
        "completion": text_of(row, completion),
    }


def question_pair(prompt: str) -> Callable[[Row], Row]:
    """A question in column ``prompt`` with the chosen and the rejected completion."""

    def read(row: Row) -> Row:
        pair = {"chosen": _answer(row, "chosen"), "rejected": _answer(row, "rejected")}
        if isinstance(pair["chosen"], list) and pair["chosen"][0]["role"] != "assistant":
            return pair  # both are whole conversations
        return {"prompt": user_turn(text_of(row, prompt), row, "system", "system_prompt"), **pair}

    return read
