"""Wrong labels, and defects in a training stage: each ``plant_*`` breaks one thing before its first step."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from trimtab.sandbox.annotators import Annotator
from trimtab.sandbox.world import VALUES, Fact, Scene, gold, sample_completion
from trimtab.types import Group, Row, Score


def labelled(
    scenes: Sequence[Scene],
    seed: int,
    *,
    noise: float = 0.0,
    contradict: float = 0.0,
    repeat: float = 0.0,
    ties: float = 0.0,
    scale: float = 8.0,
    close: bool = False,
) -> list[Row]:
    """Comparisons of two completions per prompt, labelled by one simulated annotator.

    Args:
        scenes: Prompts.
        seed: Random seed of completions and labels.
        noise: Share of flipped labels.
        contradict: Share of rows that are repeated at the end with the opposite label.
        repeat: Share of rows that are repeated at the end unchanged.
        ties: Share of rows whose completions are ranked equal.
        scale: Nats per point of gold score; infinity labels by the gold score itself.
        close: Only pairs whose gold scores differ by more than 0 and at most 0.4.
    """
    rows: list[Row] = []
    repeats: list[Row] = []
    for i, scene in enumerate(scenes):
        rng = np.random.default_rng((seed, 31, i))
        a, b = sample_completion(scene, rng), sample_completion(scene, rng)
        for _ in range(20):
            gap = abs(gold(scene, a).total - gold(scene, b).total)
            if a != b and (not close or 0 < gap <= 0.4):
                break
            b = sample_completion(scene, rng)
        else:
            continue
        if math.isinf(scale):
            worse = int(gold(scene, a).total > gold(scene, b).total)
        else:
            worse = 1 - Annotator("one", scale=scale).choose(scene, a, b, rng)
        if rng.random() < noise:
            worse = 1 - worse
        ranks = [1, 0] if worse == 0 else [0, 1]
        if rng.random() < ties:
            ranks = [0, 0]
        row = {
            "prompt": scene.messages(),
            "completions": [a, b],
            "ranks": ranks,
            "scene": scene.to_json(),
        }
        rows.append(row)
        draw = rng.random()
        if draw < contradict:
            repeats.append({**row, "ranks": [1 - r for r in ranks]})
        elif draw < contradict + repeat:
            repeats.append(dict(row))
    return rows + repeats


def swapped(scene: Scene, seed: int) -> tuple[Scene, Scene]:
    """The same question by two users with different false opinions."""
    assert scene.query is not None
    rng = np.random.default_rng((seed, 37))
    fact = scene.query
    values = [v for v in VALUES[fact.relation] if v != fact.what]
    picked = [values[int(i)] for i in rng.permutation(len(values))[:2]]
    one, two = (
        replace(scene, kind="opinion", opinion=Fact(fact.who, fact.relation, v)) for v in picked
    )
    return one, two


def plant_no_end(stage: Any) -> None:
    """Mask the end token of every label, as happens when pad is EOS and masked (SFT, DPO)."""
    for group in stage.train:
        for c in group.completions:
            c.mask = c.mask.copy()
            c.mask[-1] = False


def plant_wrong_stop(stage: Any, token: str = "<pad>") -> None:
    """The sampler stops at another token than the one that ends completions."""
    stage.engine.sampler.stop_ids = (int(stage.renderer.tokenizer.convert_tokens_to_ids(token)),)


def plant_stale(stage: Any, lag: int) -> None:
    """The sampler gets new weights only every ``lag`` steps."""
    live, sample = stage.lm.model, stage.sample
    old = copy.deepcopy(live)
    stage.engine.sampler.model = old

    def stale_sample(index: int, *args: Any) -> list[Group]:
        if index % lag == 0:
            old.load_state_dict(live.state_dict())
        return sample(index, *args)

    stage.sample = stale_sample


def plant_hot(stage: Any, temperature: float) -> None:
    """The sampler uses another temperature than the trainer divides by."""
    sampler = stage.engine.sampler

    def hot_sampler(requests: Any, sampling: Any, *args: Any) -> Any:
        return sampler(requests, sampling.model_copy(update={"temperature": temperature}), *args)

    stage.engine.sampler = hot_sampler


def plant_outage(
    stage: Any, share: float, since: int, value: float | None = 0.0, until: int = 1 << 30
) -> None:
    """From iteration ``since`` on, a ``share`` of rewards fail and become ``value``; None leaves
    them without a reward, with a status."""
    sample = stage.sample

    def failing_sample(index: int, *args: Any) -> list[Group]:
        groups: list[Group] = sample(index, *args)
        rng = np.random.default_rng((stage.config.loop.seed, 41, index))
        for c in (c for g in groups for c in g.completions):
            if since <= index < until and rng.random() < share:
                c.reward = value
                name = next(iter(c.scores), "reward")
                c.scores[name] = Score(value, "ok" if value is not None else "error", "429")
        return groups

    stage.sample = failing_sample


def plant_prompts(stage: Any, later: Sequence[Group], since: int) -> None:
    """From iteration ``since`` on, prompts come from another set; nothing is broken."""
    sample = stage.sample

    def later_sample(index: int, *args: Any) -> list[Group]:
        if index == since:
            stage.prompts = list(later)
        return sample(index, *args)

    stage.sample = later_sample
