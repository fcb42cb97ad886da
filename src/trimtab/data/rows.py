"""Rows to write: a prompt with one completion as a demonstration, with two as a comparison."""

from __future__ import annotations

from trimtab.types import Group, Row

_TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")


def demonstration(group: Group, text: str) -> Row:
    """A row for SFT: messages, or prompt and completion where only the completion is trained on."""
    messages = group.extra.get("messages")
    if messages is None:
        return {"prompt": group.text, "completion": text}
    turn = {"role": "assistant", "content": text}
    if any(m["role"] == "assistant" for m in messages):
        # As messages, the earlier turns of the assistant would be trained on too.
        return {"prompt": messages, "completion": [turn], **_template_columns(group)}
    return {"messages": [*messages, turn], **_template_columns(group)}


def comparison(group: Group, chosen: str, rejected: str) -> Row:
    """A row in TRL's columns, conversational where the prompt is."""
    messages = group.extra.get("messages")
    if messages is None:
        return {"prompt": group.text, "chosen": chosen, "rejected": rejected}
    return {
        "prompt": messages,
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        **_template_columns(group),
    }


def _template_columns(group: Group) -> Row:
    return {k: group.extra[k] for k in _TEMPLATE_COLUMNS if group.extra.get(k)}
