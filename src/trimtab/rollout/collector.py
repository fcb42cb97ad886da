"""Sampling completions of prompts."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

from trimtab.data.render import Renderer
from trimtab.models.load import LM, ModelSpec
from trimtab.runs.console import bar
from trimtab.sample.sampler import Request, Sampler, SamplingConfig
from trimtab.types import Group


def load_sampler(spec: ModelSpec, renderer: Renderer) -> Sampler:
    """A sampler of a frozen model."""
    lm = LM.load(spec, train=False)
    return Sampler(
        lm.plain_attention(), renderer.tokenizer, stop_ids=renderer.stop_ids, mixed=lm.mixed
    )


def collect(
    sampler: Sampler,
    renderer: Renderer,
    prompts: Sequence[Group],
    sampling: SamplingConfig,
    *,
    n: int,
    key: tuple[int, ...],
    version: int = 0,
    title: str = "",
) -> list[Group]:
    """Sample ``n`` completions for each prompt.

    Args:
        prompts: Groups without completions; they are not changed.
        key: Start of each random stream's key. The prompt's index is appended, so that a prompt that
            occurs twice in a batch gets different completions.
        version: Number of optimiser steps of the weights.
        title: Of a progress bar; without one there is none.

    Returns:
        New groups whose completions have the sampler's ids, log-probs and finish reason.
    """
    requests = [Request(g.prompt, (*key, i), n) for i, g in enumerate(prompts)]
    groups: list[Group] = []
    with bar(title) if title else nullcontext() as on_progress:
        sampled = sampler(requests, sampling, on_progress)
    for prompt, samples in zip(prompts, sampled, strict=True):
        completions = [renderer.completion(a.ids, a.finish) for a in samples]
        for c, a in zip(completions, samples, strict=True):
            c.version = version
            c.tokens["sampler_logp"] = a.logp
        groups.append(replace(prompt, completions=completions))
    return groups
