"""Rows to write: a prompt with a completion as a demonstration, with two as a comparison."""

from __future__ import annotations

from typing import Any

from trimtab.types import Group


def demonstration(group: Group, text: str) -> dict[str, Any]:
    """A row for SFT: messages, or prompt and completion where only the answer is to be learnt."""
    asked: list[dict[str, str]] | None = group.extra.get("messages")
    if asked is None:
        return {"prompt": group.text, "completion": text}
    answer = {"role": "assistant", "content": text}
    if any(m["role"] == "assistant" for m in asked):
        # As messages, the earlier answers would be trained on too.
        return {"prompt": asked, "completion": [answer]}
    return {"messages": [*asked, answer]}


def comparison(group: Group, chosen: str, rejected: str) -> dict[str, Any]:
    """A row in TRL's columns, conversational where the prompt is."""
    asked: list[dict[str, str]] | None = group.extra.get("messages")
    if asked is None:
        return {"prompt": group.text, "chosen": chosen, "rejected": rejected}
    return {
        "prompt": asked,
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }
