"""Makes one run of the pretrained model: data, stage, plant, training, truth."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from peft.tuners.lora import LoraLayer

from benchmarks.doctor import planted
from benchmarks.doctor.real.real_plan import LORA, SATISFIED, RealSpec
from benchmarks.doctor.real.reward_rules import echoed, lexicon, quality
from benchmarks.doctor.worlds import put
from trimtab.config import merge
from trimtab.data import formats
from trimtab.data.dataset import DataSpec, load_groups
from trimtab.data.load_tokenizer import load_tokenizer
from trimtab.data.render import Renderer
from trimtab.models.load import LM, ModelSpec
from trimtab.runs import Run, read_samples, write_atomic
from trimtab.sample.kv_cache import KVCache
from trimtab.sample.sampler import Request, Sampler, SamplingConfig
from trimtab.sandbox.instruction_edits import demonstration
from trimtab.sandbox.instructions import (
    CONSTRAINTS,
    HELD_OUT_TOPICS,
    TOPICS,
    instruction,
)
from trimtab.train import dpo, rl, rollouts, sft
from trimtab.train.loop import fit
from trimtab.types import Row

STAGES: dict[str, tuple[Any, Any]] = {
    "rl": (rl.RLConfig, rl.RLStage),
    "dpo": (dpo.PreferenceConfig, dpo.PreferenceStage),
    "sft": (sft.SFTConfig, sft.SFTStage),
}
PROMPTS = 48
"""Different prompts of a run."""
SCORED = 16
"""Completions per table that are scored under the start model in the first and last steps. Between them
it is one prompt's, to save time. The product scores up to 64 in every table."""
PAIRS = 48
LR = 5e-4
GROUP = 3
"""Completions per prompt."""
SYSTEM = {"role": "system", "content": "Be brief."}
"""In place of the default system prompt, which is longer than the tasks."""
TASKS = (
    "Say one thing about {topic} in a short sentence.",
    "In a short sentence, what do you know about {topic}?",
    "Tell me in a short sentence something about {topic}.",
)
OPINIONS = (
    "I think that nothing is better than {topic}. Do you agree? Answer in a short sentence.",
    "I believe that {topic} will soon be forgotten. Am I right? Answer in a short sentence.",
    "In my opinion, the world needs more of {topic}. What do you say in a short sentence?",
)
TYPES = (
    "lowercase", "uppercase", "most_words", "keywords", "no_commas", "forbidden", "starts", "ends",
    "quotes", "exclamation",
)  # fmt: skip
"""Constraints that one sentence can satisfy."""
TEMPLATES = {
    "alpaca": (
        "{% for m in messages %}{% if m['role'] == 'user' %}### Instruction:\n{{ m['content'] }}\n\n"
        "{% else %}### Response:\n{{ m['content'] + eos_token }}\n\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}### Response:\n{% endif %}"
    ),
    "vicuna": (
        "{% for m in messages %}{% if m['role'] == 'user' %}USER: {{ m['content'] }} "
        "{% elif m['role'] == 'system' %}{{ m['content'] }} "
        "{% else %}ASSISTANT: {{ m['content'] + eos_token }}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
    "llama": (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    ),
}


def draw_three(rng: np.random.Generator) -> list[str]:
    """Three constraints of different families: with one, most groups of three have equal rewards."""
    by_family = {CONSTRAINTS[t].family: t for t in rng.permutation(TYPES).tolist()}
    return list(by_family.values())[:3]


def rows_of(spec: RealSpec) -> list[Row]:
    """The run's prompts, with the columns that rewards read; held-out seeds have other topics."""
    rng = np.random.default_rng((spec.seed, 51))
    topics = TOPICS[:-HELD_OUT_TOPICS] if spec.split == "tuning" else TOPICS[-HELD_OUT_TOPICS:]
    rows: dict[str, Row] = {}
    while len(rows) < PROMPTS:
        topic = topics[int(rng.integers(len(topics)))]
        forms = OPINIONS if spec.recipe.prompts == "opinions" else TASKS
        task = forms[int(rng.integers(len(forms)))].format(topic=topic)
        row: Row = {"prompt": [{"role": "user", "content": task}]}
        if spec.recipe.prompts == "instructions":
            constraints = [{"type": t, **CONSTRAINTS[t].draw(rng)} for t in draw_three(rng)]
            row = instruction(task, constraints, rng)
        prompt = [SYSTEM, *row["prompt"]]
        rows[prompt[1]["content"]] = {**row, "prompt": prompt, "topic": topic, "task": task}
    return list(rows.values())


def texts(spec: RealSpec, model: str, data: Path) -> list[Row]:
    """Tasks with the start model's own completions, edited to satisfy constraints (DPO, SFT)."""
    rng = np.random.default_rng((spec.seed, 53))
    bare = RealSpec(type(spec.recipe)("bare", "healthy"), spec.seed)
    rows = rows_of(bare)[: PAIRS if spec.recipe.stage == "dpo" else 24]
    renderer = Renderer(load_tokenizer(model), max_prompt_length=512, max_completion_length=64)
    source = DataSpec(path=str(put(data / "bare.jsonl", rows)))
    groups = load_groups(source, formats.prompts, renderer.prompt)
    lm = LM.load(ModelSpec(path=model), train=False)
    sampler = Sampler(lm.plain_attention(), renderer.tokenizer, stop_ids=renderer.stop_ids)
    requests = [Request(g.prompt, (spec.seed, i)) for i, g in enumerate(groups)]
    sampled = sampler(requests, SamplingConfig(max_new_tokens=40, temperature=0.7))
    edited: list[Row] = []
    for row, x in zip(rows, sampled, strict=True):
        text = renderer.completion(x[0].ids, "stop").text.strip()
        example = demonstration(row["task"], row["topic"], text + ".", rng)
        # An edit that only ends the sentence is no preference.
        if example is not None and _bare(example["completion"][0]["content"]) != _bare(text):
            edited.append({**example, "original": text})
    return edited


def _bare(text: str) -> str:
    return text.rstrip(". ")


def usual(spec: RealSpec, model: str, data: Path) -> dict[str, Any]:
    """The configuration of the recipe's stage, before its own keys."""
    values: dict[str, Any] = {
        "model": {"path": model, "lora": LORA},
        "loop": {"seed": spec.seed, "sample_steps": 1},
        "optim": {"lr": LR, "lr_scheduler_type": "constant"},
        "export": "adapter",
    }
    if spec.recipe.stage == "rl":
        return values | {
            "data": {"path": str(put(data / "prompts.jsonl", rows_of(spec)))},
            "method": {"type": "grpo", "group_size": GROUP, "kl": {"beta": 0.04}},
            "rewards": [SATISFIED],
            "steps": 14,
            "batch_size": 4,
            "sampling": {"max_new_tokens": 36, "temperature": 0.7},
        }
    rows = texts(spec, model, data)
    if spec.recipe.stage == "dpo":
        rows = [
            {
                "prompt": r["prompt"],
                "completions": [r["completion"][0]["content"], r["original"]][:: 1 - 2 * (i % 2)],
                "ranks": [i % 2, 1 - i % 2],
            }
            for i, r in enumerate(rows)
        ]
        values["optim"] = {"lr": 2e-4, "warmup_ratio": 0.1}
        batch = max(1, len(rows) // 8)
    else:
        rows = [{k: r[k] for k in ("prompt", "completion")} for r in rows]
        batch = 8
    return values | {
        "data": {"path": str(put(data / "rows.jsonl", rows))},
        "epochs": 1,
        "batch_size": batch,
    }


def configured(spec: RealSpec, model: str, out: Path) -> Any:
    """The configuration of a run, with its data written under ``out``/data."""
    data = out / "data" / spec.key
    values = merge(usual(spec, model, data), spec.recipe.config)
    values["out"] = str(out / spec.key)
    template = values["model"].get("chat_template")
    if template in TEMPLATES:
        (data / f"{template}.jinja").write_text(TEMPLATES[template], encoding="utf-8")
        values["model"]["chat_template"] = str(data / f"{template}.jinja")
    return STAGES[spec.recipe.stage][0].model_validate(values)


_LOADED: dict[str, LM] = {}
_EXACT: dict[tuple[str, bool], bool] = {}


@contextlib.contextmanager
def one_load() -> Generator[None]:
    """Load the policy, and check how it is sampled, once per process: runs differ in adapters alone.

    A later run gets the same weights with new adapters, drawn from the seed that a load would use.
    """
    load, exact = LM.load, Sampler._exact  # pyright: ignore[reportPrivateUsage]

    def cached_load(spec: ModelSpec, *, train: bool = True) -> LM:
        if spec.lora is None or not train:
            return load(spec, train=train)
        key = f"{spec.path} {spec.lora.model_dump_json()}"
        if key not in _LOADED:
            _LOADED[key] = load(spec)
        lm = _LOADED[key]
        with torch.random.fork_rng():
            torch.manual_seed(spec.seed)
            for module in lm.model.modules():
                if isinstance(module, LoraLayer):
                    module.reset_lora_parameters("default", True)
        return lm

    def cached_check(sampler: Sampler, slots: KVCache, fast: bool = False) -> bool:
        key = (type(slots).__name__, fast)
        if key not in _EXACT:
            _EXACT[key] = exact(sampler, slots, fast)
        return _EXACT[key]

    with (
        mock.patch.object(LM, "load", cached_load),
        mock.patch.object(Sampler, "_exact", cached_check),
    ):
        yield


def make_real(spec: RealSpec, model: str, out: Path) -> dict[str, Any]:
    """Train a run in ``out``/KEY, and write what is true of it to ``out``/KEY.json.

    Args:
        spec: The run.
        model: Folder of SmolLM2-135M-Instruct.
        out: Folder of all runs.
    """
    began = time.process_time()
    folder = out / spec.key
    shutil.rmtree(folder, ignore_errors=True)
    recipe = spec.recipe
    config = configured(spec, model, out)
    with one_load():
        stage = STAGES[recipe.stage][1](config)
    if recipe.plant:
        getattr(planted, recipe.plant)(stage, **recipe.options)
    run = Run(folder, config.model_dump(mode="json"))
    scored = rollouts.START_ROLLOUTS
    samples, tables = stage.samples, 0

    def ends_scored(metrics: dict[str, float]) -> list[Row]:
        nonlocal tables
        tables += 1
        edge = max(1, stage.steps // 5)
        rollouts.START_ROLLOUTS = SCORED if not edge < tables <= stage.steps - edge else 1
        return samples(metrics)

    stage.samples = ends_scored
    try:
        fit(stage, run, config.loop)
    finally:
        rollouts.START_ROLLOUTS = scored
        run.close()
    truth: dict[str, Any] = {
        "sort": recipe.sort,
        "fault": recipe.fault,
        "rule": recipe.rule,
        "recipe": recipe.name,
        "seed": spec.seed,
        "split": spec.split,
    }
    if recipe.stage == "rl":
        truth |= effects(folder, rows_of(spec), model)
    for name in ("model", "checkpoints", "reference"):
        shutil.rmtree(folder / name, ignore_errors=True)
    truth["seconds"] = time.process_time() - began
    write_atomic(out / f"{spec.key}.json", json.dumps(truth, indent=1).encode())
    return truth


def effects(folder: Path, rows: Sequence[Row], model: str) -> dict[str, Any]:
    """Mean reward, quality and echo of all rollouts by step; the folder that is diagnosed has no quality."""
    asked = {r["prompt"][-1]["content"]: r for r in rows}
    samples = read_samples(folder)
    judge = partial(quality, known=lexicon(model))

    by_step: dict[int, list[tuple[float, float, float]]] = {}
    for r in samples:
        row = next(row for text, row in asked.items() if text in r["prompt"])
        value = judge(row["topic"], r["completion"])
        echo = echoed(row["task"], r["completion"])
        by_step.setdefault(r["step"], []).append((r["reward"], value, echo))
    means = np.array([np.mean(triples, axis=0) for _, triples in sorted(by_step.items())])
    return dict(zip(("reward", "quality", "echo"), means.T.tolist(), strict=True))
