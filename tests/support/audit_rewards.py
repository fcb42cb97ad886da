"""Two opposite rewards for audits."""

from __future__ import annotations

from typing import Any


def red(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """The proxy: a share of one word."""
    return [c.split().count("red") / max(1, len(c.split())) for c in completions]


def not_red(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """Gold: the word is not wanted at all."""
    return [1.0 - r for r in red(prompts, completions)]


def turns(messages: list[list[Any]], **_: Any) -> list[float]:
    """The number of turns of each prompt."""
    return [float(len(m)) for m in messages]
