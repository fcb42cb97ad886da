"""Planted faults: bent rewards, on demand, so that a failure can be shown and looked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def length_reward(
    prompts: Sequence[str], completions: Sequence[str], scale: float = 0.1, **_: Any
) -> list[float]:
    """Longer answers score higher: ``scale`` a word, whatever the words say."""
    return [scale * len(c.split()) for c in completions]
