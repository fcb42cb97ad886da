"""The sandbox as stages of a pipeline: its data, and its simulated people as labellers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from trimtab.config import Config
from trimtab.data import formats, sources
from trimtab.data.render import Renderer, load_tokenizer
from trimtab.errors import DataError
from trimtab.models.load import LM, ModelSpec
from trimtab.rollout.collector import collect
from trimtab.runs import write_atomic
from trimtab.runs.console import bar, console
from trimtab.sample.sampler import Sampler, SamplingConfig
from trimtab.sandbox import annotators
from trimtab.sandbox.world import Scene, demonstrations, make_scenes
from trimtab.types import Group


class WorldConfig(Config):
    """Configuration of the sandbox's data."""

    out: str = "runs/world"
    seed: int = 0
    demonstrations: int = Field(default=3000, gt=0)
    prompts: int = Field(default=2000, gt=0)
    """For sampling, labels and RL."""
    heldout: int = Field(default=600, gt=0)
    """For the final comparison; never trained on."""


def _lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(r) + "\n" for r in rows).encode()


def prompt_rows(scenes: Sequence[Scene]) -> list[dict[str, Any]]:
    """Prompt-only rows; the scene travels along, so that the gold score can be computed."""
    return [{"prompt": s.messages(), "kind": s.kind, "scene": s.to_json()} for s in scenes]


def prompt_groups(scenes: Sequence[Scene], renderer: Renderer) -> list[Group]:
    """The same as groups without completions, ready to be sampled from."""
    rows = sources.Rows("scenes", list(enumerate(prompt_rows(scenes), 1)))
    made = (renderer.prompt(e) for e in formats.prompts(rows))
    return [g for g in made if g is not None]


def world(config: WorldConfig) -> dict[str, Any]:
    """Write demonstrations.jsonl, prompts.jsonl and heldout.jsonl into ``out``."""
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    demo_scenes = make_scenes(config.demonstrations, config.seed)
    prompt_scenes = make_scenes(config.prompts, config.seed, config.demonstrations)
    heldout_scenes = make_scenes(config.heldout, config.seed, 10_000_000)
    write_atomic(out / "demonstrations.jsonl", _lines(demonstrations(demo_scenes, config.seed)))
    write_atomic(out / "prompts.jsonl", _lines(prompt_rows(prompt_scenes)))
    write_atomic(out / "heldout.jsonl", _lines(prompt_rows(heldout_scenes)))
    console.print(
        f"[bold]world[/bold]: {config.demonstrations} demonstrations, {config.prompts} prompts, "
        f"{config.heldout} held out -> {config.out}"
    )
    return {"demonstrations": config.demonstrations, "prompts": config.prompts}


class LabelConfig(Config):
    """Configuration of simulated labelling."""

    out: str = "runs/label"
    model: ModelSpec
    """Whose answers are ranked."""
    data: str
    """Sandbox prompts."""
    skip: int = Field(default=0, ge=0)
    """Prompts passed over first: those that an earlier round has labelled."""
    limit: int | None = Field(default=None, gt=0)
    """Prompts to label, after ``skip``."""
    answers: int = Field(default=4, ge=2, le=9)
    """Sampled for each prompt."""
    heldout: int = Field(default=200, gt=0)
    """Prompts whose comparisons are kept for evaluation."""
    sampling: SamplingConfig = SamplingConfig()
    seed: int = 0


def label(config: LabelConfig) -> dict[str, Any]:
    """Sample answers, let simulated annotators rank them; comparisons.jsonl, heldout.jsonl.

    Rows have ``prompt``, ``completions``, ``ranks`` (0 best), ``annotator``, and ``probs``: the
    annotator's own probability that one answer is better than another, from which the noise
    ceiling of a reward model is computed.
    """
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    most = None if config.limit is None else config.skip + config.limit
    examples = formats.prompts(sources.read(config.data, limit=most))[config.skip :]
    if not examples:
        raise DataError(f"{config.data}: skip {config.skip} leaves no prompt to label; lower it")
    tokenizer = load_tokenizer(
        config.model.tokenizer or config.model.path, config.model.chat_template
    )
    renderer = Renderer(tokenizer, max_prompt=1 << 20, max_tokens=1 << 20)
    lm = LM.load(config.model, train=False)
    prompts = [g for g in (renderer.prompt(e) for e in examples) if g is not None]
    sampler = Sampler(lm.plain_attention(), tokenizer, stop_ids=renderer.stop_ids)
    with bar("label") as show:
        groups = collect(
            sampler, renderer, prompts, config.sampling,
            n=config.answers, key=(config.seed,), version=0, on_progress=show,
        )  # fmt: skip
    people = annotators.panel()
    rows: list[dict[str, Any]] = []
    for i, group in enumerate(groups):
        scene = Scene.from_json(group.extra["scene"])
        rng = np.random.default_rng((config.seed, i))
        person = people[int(rng.integers(len(people)))]
        texts = list(dict.fromkeys(c.text for c in group.completions if c.text.strip()))
        if len(texts) < 2:
            continue
        ranks = person.rank(scene, texts, rng)
        probs = [[person.prob(scene, a, b) if a != b else 0.5 for b in texts] for a in texts]
        rows.append(
            {
                "prompt": scene.messages(),
                "completions": texts,
                "ranks": [int(r) for r in ranks],
                "annotator": person.name,
                "probs": probs,
                "kind": scene.kind,
                "scene": scene.to_json(),
            }
        )
    held = min(config.heldout, len(rows) // 4)
    write_atomic(out / "comparisons.jsonl", _lines(rows[held:]))
    write_atomic(out / "heldout.jsonl", _lines(rows[:held]))
    pairs = sum(len(r["ranks"]) * (len(r["ranks"]) - 1) // 2 for r in rows[held:])
    console.print(
        f"[bold]label[/bold]: {len(rows) - held} prompts ranked, {pairs} comparisons by "
        f"{len(people)} simulated people, {held} prompts held out -> {config.out}"
    )
    return {"prompts": len(rows) - held, "comparisons": pairs}
