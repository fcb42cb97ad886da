"""Proof that a server samples from the trainer's weights: its logprobs against the trainer's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.rollout.engine import EngineError
from trimtab.sample.draw import SamplingConfig
from trimtab.sample.sampler import Request
from trimtab.types import Floats, Ints

PROMPTS, TOKENS = 4, 16
PROBE = SamplingConfig(max_new_tokens=TOKENS)
"""At temperature 1, whatever the run samples with."""
EXACT, ROUNDED = 1e-3, 0.05
"""Nats per token: the largest difference in float32, the mean difference in bfloat16."""


@dataclass(frozen=True, slots=True)
class Verified:
    """Sequences with the trainer's logprobs of their completions."""

    sequences: list[tuple[Ints, Ints]]
    logps: list[Floats]


def probe_requests(prompts: Sequence[Ints], version: int, room: int) -> list[Request]:
    """Requests that show a server's weights.

    Args:
        prompts: Prompts of the run; the first ones are used.
        version: Of the weights; other completions are drawn for each.
        room: Tokens of a prompt with its completion that the server has room for; of a longer prompt
            the beginning is used.
    """
    chosen = [p[: max(1, room - TOKENS)] for p in prompts[:PROMPTS]]
    return [Request(p, (version, i, 0x7072)) for i, p in enumerate(chosen)]


def compare(
    url: str, version: int, served: Sequence[Floats], trainer: Sequence[Floats], exact: bool
) -> float:
    """The difference of two lists of logprobs, nats per token.

    Args:
        exact: Whether both compute in float32: the largest difference counts, otherwise the mean one.

    Raises:
        EngineError: it is too large for equal weights.
    """
    joined = np.abs(np.concatenate(served) - np.concatenate(trainer))
    gap, limit = (float(joined.max()), EXACT) if exact else (float(joined.mean()), ROUNDED)
    if not gap <= limit:
        raise EngineError(
            f"{url}: after the update to version {version} its logprobs differ from the trainer's by "
            f"{gap:.2g} nats per token (limit {limit:g}): it does not have these weights, or computes "
            "with another precision (--dtype). A tied output head that was left behind looks like this "
            "too. The run stops, since it would train on completions of another policy"
        )
    return gap
