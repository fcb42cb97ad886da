"""Sampling completions of prompts."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

from trimtab.data.render import Renderer
from trimtab.rollout.engine import Engine, generate
from trimtab.runs.console import bar
from trimtab.sample.sampler import Request, SamplingConfig
from trimtab.types import Group


def collect(
    engine: Engine,
    renderer: Renderer,
    prompts: Sequence[Group],
    sampling: SamplingConfig,
    *,
    n: int,
    key: tuple[int, ...],
    first: int = 0,
    title: str = "",
) -> list[Group]:
    """Sample ``n`` completions for each prompt.

    Args:
        prompts: Groups without completions; they are not changed.
        key: Start of each random stream's key. The prompt's index is appended, so that a prompt that
            occurs twice in a batch gets different completions.
        first: Index of the first prompt, where ``prompts`` are a part of a batch.
        title: Of a progress bar; without one there is none.

    Returns:
        New groups whose completions have the engine's ids, log-probs and finish reason.

    Raises:
        EngineError: a request failed.
    """
    requests = [Request(g.prompt, (*key, i), n) for i, g in enumerate(prompts, first)]
    groups: list[Group] = []
    with bar(title) if title else nullcontext() as on_progress:
        sampled = generate(engine, requests, sampling, on_progress)
    for prompt, samples in zip(prompts, sampled, strict=True):
        completions = [renderer.completion(a.ids, a.finish) for a in samples]
        for c, a in zip(completions, samples, strict=True):
            c.versions = a.versions
            c.version = a.versions[0][2] if a.versions else -1
            c.tokens["sampler_logp"] = a.logp
        groups.append(replace(prompt, completions=completions))
    return groups
