"""The synthetic tasks as recipe stages: data, simulated annotators, and word problems."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field

from trimtab.config import Config
from trimtab.data import formats, sources
from trimtab.data.render import Renderer, load_tokenizer
from trimtab.datagen.output import write_summary
from trimtab.errors import DataError
from trimtab.models.load import LM, ModelSpec
from trimtab.rollout.collector import collect
from trimtab.runs import write_atomic
from trimtab.runs.console import bar
from trimtab.sample.sampler import Sampler, SamplingConfig
from trimtab.sandbox import annotators, arithmetic, word_problems
from trimtab.sandbox.arithmetic import Difficulty
from trimtab.sandbox.world import Scene, demonstrations, make_scenes
from trimtab.types import Group, Row

log = logging.getLogger(__name__)


class WorldConfig(Config):
    """Configuration of the sandbox's data."""

    out: str = "runs/world"
    seed: int = 0
    demonstrations: int = Field(default=3000, gt=0)
    prompts: int = Field(default=2000, gt=0)
    """For sampling, labels and RL."""
    heldout: int = Field(default=600, gt=0)
    """For the final comparison; never trained on."""


def _lines(rows: Sequence[Row]) -> bytes:
    return "".join(json.dumps(r) + "\n" for r in rows).encode()


def prompt_rows(scenes: Sequence[Scene]) -> list[Row]:
    """Prompt-only rows; the scene travels along, so that the gold score can be computed."""
    return [{"prompt": s.messages(), "kind": s.kind, "scene": s.to_json()} for s in scenes]


def prompt_groups(scenes: Sequence[Scene], renderer: Renderer) -> list[Group]:
    """The same as groups without completions, ready to be sampled from."""
    rows = sources.Rows("scenes", list(enumerate(prompt_rows(scenes), 1)))
    rendered = (renderer.prompt(e) for e in formats.prompts(rows))
    return [g for g in rendered if g is not None]


def world(config: WorldConfig) -> Row:
    """Write demonstrations.jsonl, prompts.jsonl and heldout.jsonl into ``out``."""
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    demo_scenes = make_scenes(config.demonstrations, config.seed)
    prompt_scenes = make_scenes(config.prompts, config.seed, config.demonstrations)
    heldout_scenes = make_scenes(config.heldout, config.seed, 10_000_000)
    write_atomic(out / "demonstrations.jsonl", _lines(demonstrations(demo_scenes, config.seed)))
    write_atomic(out / "prompts.jsonl", _lines(prompt_rows(prompt_scenes)))
    write_atomic(out / "heldout.jsonl", _lines(prompt_rows(heldout_scenes)))
    log.info(
        f"world: {config.demonstrations} demonstrations, {config.prompts} prompts, "
        f"{config.heldout} held out -> {config.out}"
    )
    return {"demonstrations": config.demonstrations, "prompts": config.prompts}


class LabelConfig(Config):
    """Configuration of simulated labelling."""

    renamed: ClassVar[dict[str, str]] = {"answers": "num_completions"}

    out: str = "runs/label"
    model: ModelSpec
    """Whose answers are ranked."""
    data: str
    """Sandbox prompts."""
    skip: int = Field(default=0, ge=0)
    """Prompts passed over first: those that an earlier round has labelled."""
    limit: int | None = Field(default=None, gt=0)
    """Prompts to label, after ``skip``."""
    num_completions: int = Field(default=4, ge=2, le=9)
    """Completions sampled per prompt."""
    heldout: int = Field(default=200, gt=0)
    """Prompts whose comparisons are kept for evaluation."""
    sampling: SamplingConfig = SamplingConfig()
    seed: int = 0


def label(config: LabelConfig) -> Row:
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
    renderer = Renderer(tokenizer)
    lm = LM.load(config.model, train=False)
    prompts = [g for g in (renderer.prompt(e) for e in examples) if g is not None]
    sampler = Sampler(lm.plain_attention(), tokenizer, stop_ids=renderer.stop_ids)
    with bar("label") as show:
        groups = collect(
            sampler,
            renderer,
            prompts,
            config.sampling,
            n=config.num_completions,
            key=(config.seed,),
            version=0,
            on_progress=show,
        )
    people = annotators.panel()
    rows: list[Row] = []
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
    heldout = min(config.heldout, len(rows) // 4)
    write_atomic(out / "comparisons.jsonl", _lines(rows[heldout:]))
    write_atomic(out / "heldout.jsonl", _lines(rows[:heldout]))
    pairs = sum(len(r["ranks"]) * (len(r["ranks"]) - 1) // 2 for r in rows[heldout:])
    log.info(
        f"label: {len(rows) - heldout} prompts ranked, {pairs} comparisons by "
        f"{len(people)} simulated people, {heldout} prompts held out -> {config.out}"
    )
    return {"prompts": len(rows) - heldout, "comparisons": pairs}


class TasksConfig(Config):
    """Configuration of word problems."""

    out: str = "runs/tasks"
    seed: int = 0
    difficulty: Difficulty = Difficulty()
    wrong: float = Field(default=0.25, ge=0.0, le=1.0)
    """Probability that a step of a demonstration is wrong."""
    demonstrations: int = Field(default=20_000, gt=0)
    prompts: int = Field(default=4000, gt=0)
    """For RL."""
    heldout: int = Field(default=400, gt=0)
    """For the final comparison; no question of theirs is trained on."""
    hidden: int = Field(default=64, gt=0)
    """Width of the model that config.json describes, a Llama with random weights."""
    layers: int = Field(default=2, gt=0)
    heads: int = Field(default=4, gt=0)


def tasks(config: TasksConfig) -> Row:
    """Write demonstrations.jsonl, prompts.jsonl, heldout.jsonl, tokenizer/ and config.json into
    ``out``; the last two are a start for ``model.tokenizer`` and ``model.path``.

    Returns:
        Counts, and the share of demonstrations that end in the right answer.
    """
    c, out = config, Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    used = arithmetic.make_problems(c.difficulty, c.seed, c.demonstrations + c.prompts)
    heldout_problems = arithmetic.make_problems(
        c.difficulty, c.seed, c.heldout, start=word_problems.HELD_OUT, seen=used
    )
    demonstrations = [
        word_problems.demonstration_row(p, c.seed, i, c.wrong)
        for i, p in enumerate(used[: c.demonstrations])
    ]
    prompts = [word_problems.prompt_row(p) for p in used[c.demonstrations :]]
    write_atomic(out / "demonstrations.jsonl", _lines(demonstrations))
    write_atomic(out / "prompts.jsonl", _lines(prompts))
    write_atomic(
        out / "heldout.jsonl", _lines([word_problems.prompt_row(p) for p in heldout_problems])
    )
    tokenizer = word_problems.tokenizer()
    tokenizer.save_pretrained(out / "tokenizer")
    model = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": c.hidden,
        "intermediate_size": c.hidden * 11 // 4,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.heads,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    write_atomic(out / "config.json", json.dumps(model, indent=1).encode())
    right = sum(row["right"] for row in demonstrations) / len(demonstrations)
    summary = {
        "demonstrations": c.demonstrations,
        "right": right,
        "prompts": c.prompts,
        "heldout": c.heldout,
    }
    write_summary(out, summary)
    log.info(
        f"tasks: {c.demonstrations} demonstrations ({right:.0%} end right), "
        f"{c.prompts} prompts, {c.heldout} held out -> {c.out}"
    )
    return summary
