"""Sampling completions of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from trimtab.data.render import Renderer
from trimtab.sample.sampler import Progress, Request, Sampler, SamplingConfig
from trimtab.types import Group


def collect(
    sampler: Sampler,
    renderer: Renderer,
    prompts: Sequence[Group],
    sampling: SamplingConfig,
    *,
    n: int,
    key: tuple[int, ...],
    version: int,
    on_progress: Progress | None = None,
) -> list[Group]:
    """Sample ``n`` completions for each prompt.

    Args:
        sampler: Samples from the current weights.
        renderer: Turns ids back into completions.
        prompts: Groups without completions; they are not changed.
        sampling: How to sample.
        n: Completions per prompt.
        key: Start of each random stream's key. The prompt's index is appended, so that a prompt that
            occurs twice in a batch gets different completions.
        version: Number of optimiser steps of the weights.
        on_progress: Called with the number of finished completions and their total.

    Returns:
        New groups whose completions have the sampler's ids, log-probs and finish reason.
    """
    requests = [Request(g.prompt, (*key, i), n) for i, g in enumerate(prompts)]
    groups: list[Group] = []
    for prompt, samples in zip(prompts, sampler(requests, sampling, on_progress), strict=True):
        completions = [renderer.completion(a.ids, a.finish) for a in samples]
        for c, a in zip(completions, samples, strict=True):
            c.version = version
            c.tokens["sampler_logp"] = a.logp
        groups.append(replace(prompt, completions=completions))
    return groups
