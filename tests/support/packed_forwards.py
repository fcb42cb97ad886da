"""Random groups, and their log-probs packed and one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from trimtab.data.pack import packs
from trimtab.models.load import LM
from trimtab.types import Completion, Group


def groups(seed: int = 0, vocabulary: int = 64) -> list[Group]:
    rng = np.random.default_rng(seed)

    def run(n: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        return rng.integers(3, vocabulary, n)

    prompts: list[Group] = []

    def put(prompt: np.ndarray[Any, np.dtype[np.int64]], answers: tuple[int, ...]) -> None:
        done = [Completion(run(n), np.ones(n, np.bool_)) for n in answers]
        prompts.append(Group(str(len(prompts)), prompt, done))

    for size, answers in [(7, (3, 9, 1)), (1, (5,)), (19, (2, 14)), (4, (8, 8, 2, 11))]:
        put(run(size), answers)
    system, tools = run(18), run(17)
    put(np.concatenate([system, run(3)]), (4,))
    put(np.concatenate([system, tools, run(2)]), (5, 3))
    put(np.concatenate([system, tools, run(6)]), (6,))
    return prompts


def alone(model: Any, prompts: list[Group], tau: float = 1.0) -> dict[int, torch.Tensor]:
    """Log-probs of each completion from a forward of its own."""
    rows: dict[int, torch.Tensor] = {}
    for g in prompts:
        for c in g.completions:
            ids = torch.from_numpy(np.concatenate([g.prompt, c.ids]))[None]
            with torch.no_grad():
                logits = model(input_ids=ids, use_cache=False).logits[0].float() / tau
            at = logits[len(g.prompt) - 1 : -1].log_softmax(-1)
            rows[id(c)] = at.gather(1, ids[0, len(g.prompt) :, None])[:, 0]
    return rows


def packed(
    lm: LM, prompts: list[Group], budget: int = 10_000, tau: float = 1.0
) -> dict[int, torch.Tensor]:
    rows: dict[int, torch.Tensor] = {}
    for pack in packs(prompts, budget, share=lm.exact):
        with torch.no_grad():
            logp, _ = lm.logps(lm.states(pack), pack, tau)
        flat = [c for g in pack.groups for c in g.completions]
        for b, c in enumerate(flat):
            rows[id(c)] = logp[pack.owner_C == b]
    return rows


def worst(a: dict[int, torch.Tensor], b: dict[int, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max()) for k in a)
