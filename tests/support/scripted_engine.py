"""An engine that says what a script says: for limits and failures, which no model meets on demand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from trimtab.data.piece_tokens import raw_ids
from trimtab.data.render import Renderer
from trimtab.rollout.engine import EngineError, Health, Weights
from trimtab.sample.sampler import Progress, Request, Sampled, SamplingConfig


class ScriptedEngine:
    """Answers a prompt's text with the text of ``script``, tokenised, and an end token.

    ``requests`` and ``samples`` record what came in and went out, in order.
    """

    versioned = True

    def __init__(self, renderer: Renderer, script: Callable[[str], str | None]) -> None:
        self.renderer, self.script = renderer, script
        self.requests: list[Request] = []
        self.samples: list[Sampled] = []

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self.renderer.stop_ids

    async def generate(
        self, request: Request, sampling: SamplingConfig, on_progress: Progress | None = None
    ) -> list[Sampled]:
        self.requests.append(request)
        text = self.script(self.renderer.tokenizer.decode(request.prompt.tolist()))
        if text is None:
            raise EngineError("the server is away")
        limit = min(request.limit or sampling.max_new_tokens, sampling.max_new_tokens)
        ids = [*raw_ids(self.renderer.tokenizer, text), self.renderer.eos]
        finish = "length" if len(ids) > limit else "stop"
        ids = ids[:limit]
        logp = -np.arange(1, len(ids) + 1, dtype=np.float32)
        one = Sampled(np.array(ids, dtype=np.int64), logp, finish, ((0, len(ids), 7),))
        self.samples += [one] * request.n
        return [one] * request.n

    async def update(self, version: int, weights: Weights) -> None:
        raise EngineError("a script has no weights")

    async def health(self) -> Health:
        return Health(alive=True, version=7)

    def close(self) -> None:
        """Nothing to stop."""


def last_message(prompt: str) -> str:
    """The text of the last message in a ChatML prompt."""
    return prompt.rsplit("<|im_start|>", 2)[1].partition("\n")[2].partition("<|im_end|>")[0]


def replies(*texts: str) -> Callable[[str], str]:
    """A script by turn: the n-th turn of an episode says the n-th text, later ones the last."""

    def script(prompt: str) -> str:
        turn = prompt.count("<|im_start|>assistant") - 1
        return texts[min(turn, len(texts) - 1)]

    return script


def mask_runs(mask: Sequence[bool]) -> list[tuple[int, int]]:
    """Runs of True as (start, stop)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(mask, dtype=int), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def last_tool_result(prompt: str) -> str | None:
    """What a tool returned last, in a prompt of the recipe agent-tools; None before any call."""
    if "<tool>" not in prompt:
        return None
    return prompt.rsplit("<tool>", 1)[1].split("<assistant>")[0].strip()
