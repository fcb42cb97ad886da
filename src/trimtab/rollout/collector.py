"""Prompts to scored groups."""

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
        sampler: Over the live weights.
        renderer: Turns ids back into completions.
        prompts: Groups without completions; they are not changed.
        sampling: How to sample.
        n: Completions a prompt.
        key: Start of each stream's key; the prompt's place is appended, so that one prompt drawn
            twice in a batch is not answered twice alike.
        version: Optimiser steps behind the weights.
        on_progress: Told how many of how many completions are done.

    Returns:
        New groups whose completions carry the sampler's ids, log-probs and finish reason.
    """
    requests = [Request(g.prompt, (*key, i), n) for i, g in enumerate(prompts)]
    groups: list[Group] = []
    for prompt, answers in zip(prompts, sampler(requests, sampling, on_progress), strict=True):
        completions = [renderer.completion(a.ids, a.finish) for a in answers]
        for c, a in zip(completions, answers, strict=True):
            c.version = version
            c.tokens["sampler_logp"] = a.logp
        groups.append(replace(prompt, completions=completions))
    return groups
