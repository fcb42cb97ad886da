"""Useful work: the arithmetic that a result needs, whoever computes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trimtab.types import Group


def forward(config: Any, groups: Sequence[Group], *, logits: bool) -> float:
    """FLOP of one forward: each prompt once, no padding, logits at trained positions alone."""
    d, layers = config.hidden_size, config.num_hidden_layers
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or d // heads
    kv = config.num_key_value_heads
    weights = layers * (d * size * (2 * heads + 2 * kv) + 3 * d * config.intermediate_size)
    tokens = sum(g.cost for g in groups)
    seen = 0.0
    trained = 0
    for g in groups:
        p = len(g.prompt)
        seen += p * (p + 1) / 2
        for c in g.completions:
            seen += len(c) * p + len(c) * (len(c) + 1) / 2
            trained += c.trained
    head = 2.0 * trained * d * config.vocab_size if logits else 0.0
    return 2.0 * weights * tokens + 4.0 * layers * heads * size * seen + head


def training(config: Any, groups: Sequence[Group], *, logits: bool) -> float:
    """FLOP of forward and backward."""
    return 3.0 * forward(config, groups, logits=logits)
