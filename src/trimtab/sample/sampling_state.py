"""What is asked of the sampler, the state of each completion meanwhile, and what it returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from trimtab.sample.draw import SamplingConfig, draw, uniforms
from trimtab.types import Floats, Ints, Spans


@dataclass(slots=True)
class Request:
    """A prompt [P] and its number of completions; ``(*key, index)`` seeds each one's random stream."""

    prompt: Ints
    key: tuple[int, ...]
    n: int = 1
    limit: int | None = None
    """Largest completion length in tokens, if less than ``max_new_tokens``."""


@dataclass(slots=True)
class Sampled:
    """Completion ids [T], including the stop token, and their logprobs [T] as sampled."""

    ids: Ints
    logp: Floats
    finish: Literal["stop", "length"]
    versions: Spans = ()
    """Weight version of every token, where an engine says it."""


class SamplingState:
    """State of every completion: random stream, tokens so far, and whether it has ended."""

    def __init__(
        self,
        requests: Sequence[Request],
        config: SamplingConfig,
        stop_ids: tuple[int, ...],
        tokenizer: Any,
        positions: int | None,
    ) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.owner = [(r, i) for r, req in enumerate(requests) for i in range(req.n)]
        self.first = np.cumsum([0] + [r.n for r in requests])
        count, longest = len(self.owner), config.max_new_tokens
        self.ids = np.zeros((count, longest), np.int64)
        self.logp = np.zeros((count, longest), np.float32)
        self.count = np.zeros(count, np.int64)
        self.stopped = np.zeros(count, np.bool_)
        own = [requests[r].limit for r, _ in self.owner]
        self.limit = np.array([longest if n is None else min(n, longest) for n in own], np.int64)
        if positions is not None:
            # The last token is never fed to the model, so it needs no position.
            spare = [positions - len(requests[r].prompt) + 1 for r, _ in self.owner]
            self.limit = np.minimum(self.limit, np.array(spare, np.int64))
        self.stop_ids = np.array(stop_ids, np.int64)
        # A character has at most four bytes, and a token at least one.
        self.tail = 4 * max((len(s) for s in config.stop), default=0) + 4
        self.u = np.zeros((count, longest))
        if config.temperature > 0.0:
            for item, (r, i) in enumerate(self.owner):
                self.u[item] = uniforms((*requests[r].key, i), longest)
        self.done = 0

    def step(self, items: Ints, logits: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Draw one token per item; returns ids [R] on the device, and which items ended."""
        at = self.count[items]
        u = torch.from_numpy(self.u[items, at]).to(logits.device)
        drawn, logp = draw(logits, u, self.config)
        ids = drawn.cpu().numpy()
        self.ids[items, at] = ids
        self.logp[items, at] = logp.cpu().numpy()
        self.count[items] = at + 1
        stop = np.isin(ids, self.stop_ids)
        if self.config.stop:
            for row in np.flatnonzero(~stop):
                end = int(at[row]) + 1
                tail = self.ids[items[row], max(0, end - self.tail) : end]
                text = self.tokenizer.decode(tail.tolist(), skip_special_tokens=False)
                stop[row] = any(s in text for s in self.config.stop)
        self.stopped[items] = stop
        ended = stop | (at + 1 >= self.limit[items])
        self.done += int(ended.sum())
        return drawn, ended

    def results(self) -> list[list[Sampled]]:
        out: list[list[Sampled]] = [[] for _ in range(len(self.first) - 1)]
        for item, (r, _) in enumerate(self.owner):
            t = int(self.count[item])
            finish = "stop" if self.stopped[item] else "length"
            out[r].append(Sampled(self.ids[item, :t].copy(), self.logp[item, :t].copy(), finish))
        return out
