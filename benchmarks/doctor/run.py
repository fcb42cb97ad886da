"""Makes one run: data, stage, plant, training, probes, audit, truth."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.doctor import planted
from benchmarks.doctor.plan import GOLD, Spec
from benchmarks.doctor.worlds import BASE, TASKS, prompts, put, reward_model, scenes
from trimtab.audit.audit_run import draw
from trimtab.config import import_function, merge
from trimtab.data.load_tokenizer import load_tokenizer
from trimtab.data.render import Renderer
from trimtab.datagen.sandbox_data import prompt_groups
from trimtab.models.load import LM, ModelSpec
from trimtab.runs import Run, read_metrics, read_samples, write_atomic
from trimtab.sample.sampler import Request, Sampler, SamplingConfig
from trimtab.sandbox.faults import echoes
from trimtab.sandbox.tokenizer import TEMPLATE
from trimtab.sandbox.world import Kind, Scene, demonstrations, gold
from trimtab.train import dpo, reward, rl, sft
from trimtab.train.loop import fit

AUDIT = 120
"""Rollouts with a gold score."""
STAGES: dict[str, tuple[Any, Any]] = {
    "rl": (rl.RLConfig, rl.RLStage),
    "rm": (rl.RLConfig, rl.RLStage),
    "dpo": (dpo.PreferenceConfig, dpo.PreferenceStage),
    "reward": (reward.RewardConfig, reward.RewardStage),
    "sft": (sft.SFTConfig, sft.SFTStage),
}


def kinds_of(task: str) -> tuple[Kind, ...]:
    """Of a task's name, or a list."""
    return TASKS[task] if task in TASKS else cast("tuple[Kind, ...]", tuple(task.split(",")))


def shown(spec: Spec) -> list[Scene]:
    """The run's prompts."""
    if spec.task == "believed":
        from dataclasses import replace

        return [
            replace(s, opinion=s.query) for s in scenes(("opinion",), spec.recipe.pool, spec.seed)
        ]
    return scenes(kinds_of(spec.task), spec.recipe.pool, spec.seed)


def configured(spec: Spec, out: Path, folder: Path, more: dict[str, Any]) -> Any:
    """The configuration of a run in ``folder``, with ``more`` laid over it."""
    data = out / "data" / spec.key
    values = merge(merge(_usual(spec, data, out), spec.config), more)
    values["out"] = str(folder)
    if values["model"].get("chat_template") == "SYSTEM":
        data.mkdir(parents=True, exist_ok=True)
        (data / "system.jinja").write_text(
            TEMPLATE.replace("{{ bos_token }}", "{{ bos_token + ' <user> tell me ' }}")
        )
        values["model"]["chat_template"] = str(data / "system.jinja")
    return STAGES[spec.recipe.stage][0].model_validate(values)


def make(spec: Spec, out: Path) -> dict[str, Any]:
    """Train it in ``out``/KEY, and say what is true of it."""
    began = time.process_time()
    folder = out / spec.key
    shutil.rmtree(folder, ignore_errors=True)
    recipe = spec.recipe
    config = configured(spec, out, folder, {})
    stage = STAGES[recipe.stage][1](config)
    if recipe.plant:
        options = dict(recipe.options)
        if recipe.plant == "plant_prompts":
            later = scenes(kinds_of(options.pop("kinds")), 200, spec.seed, 13)
            options["later"] = prompt_groups(later, stage.renderer)
        getattr(planted, recipe.plant)(stage, **options)
    run = Run(folder, config.model_dump(mode="json"))
    fit(stage, run, config.loop)
    run.close()
    truth: dict[str, Any] = {"sort": recipe.sort, "alarm": recipe.alarm, "recipe": recipe.name, "seed": spec.seed, "task": spec.task, "also": list(recipe.also), "causes": list(recipe.causes)}  # fmt: skip
    if recipe.stage == "dpo":
        # Of pairs that were not trained on; the doctor reads those that were.
        name = "eval/logps/chosen_shift"
        truth["held_out_shift"] = [r[name] for r in read_metrics(folder) if name in r][-1]
    if recipe.stage in ("rl", "rm"):
        truth |= _gold(folder, spec, config)
        if any(k in spec.task for k in ("opinion", "believed", "facts", "all")):
            _probe(folder, spec, config)
    # What a person would not have at hand, and what is not read, goes.
    for name in ("model", "checkpoints", "reference"):
        shutil.rmtree(folder / name, ignore_errors=True)
    truth["seconds"] = time.process_time() - began
    write_atomic(out / f"{spec.key}.json", json.dumps(truth, indent=1).encode())
    return truth


def _usual(spec: Spec, data: Path, out: Path) -> dict[str, Any]:
    recipe, seed = spec.recipe, spec.seed
    loop = {"seed": seed, "sample_steps": 1}
    model = {"path": str(BASE)}
    if recipe.stage in ("rl", "rm"):
        rewards: list[dict[str, Any]] = [GOLD]
        if recipe.stage == "rm":
            n, noise = recipe.data["n"], recipe.data["noise"]
            first = reward_model(out / "rm" / f"{n}-{noise}-{seed}", seed, n, noise)
            second = reward_model(out / "rm" / f"{n}-{noise}-{seed}-b", seed + 1000, n, noise)
            rewards = [
                {"name": "proxy", "model": str(first)},
                {"name": "second", "model": str(second), "weight": 0},
            ]
        return {
            "model": model, "data": {"path": str(prompts(data / "prompts.jsonl", shown(spec)))},
            "method": {"type": "grpo", "group_size": 4}, "rewards": rewards, "steps": 20, "batch_size": 12,
            "sampling": {"max_new_tokens": 36}, "optim": {"lr": 3e-4, "lr_scheduler_type": "constant"}, "loop": loop,
        }  # fmt: skip
    if recipe.stage == "sft":
        rows = demonstrations(shown(spec), seed)
        return {"model": model, "data": {"path": str(put(data / "demos.jsonl", rows))}, "epochs": 1, "batch_size": 24,
                "holdout": 24, "optim": {"lr": 3e-4}, "loop": loop}  # fmt: skip
    labels = dict(recipe.data)
    n = int(labels.pop("n"))
    task = kinds_of(spec.task)
    rows = planted.labelled(scenes(task, n, seed, 11), seed, **labels)
    usual: dict[str, Any] = {
        "model": model,
        "data": {"path": str(put(data / "pairs.jsonl", rows))},
        "batch_size": 16,
        "loop": loop,
    }
    if labels.get("repeat"):
        return {**usual, "holdout": 60, "epochs": 1, "optim": {"lr": 2e-4}}
    held_out = planted.labelled(
        scenes(task, 160, seed, 17),
        seed + 500,
        **{k: v for k, v in labels.items() if k in ("noise", "scale", "close")},
    )
    usual["eval_data"] = {"path": str(put(data / "held.jsonl", held_out))}
    return {**usual, "epochs": 2, "batch_size": 32 if recipe.stage == "reward" else 16,
            "optim": {"lr": 5e-4 if recipe.stage == "reward" else 2e-4, "warmup_ratio": 0.1}}  # fmt: skip


def _gold(folder: Path, spec: Spec, config: rl.RLConfig) -> dict[str, Any]:
    """Gold of every logged rollout: the truth, which stays out of the folder but for an audit, drawn
    as ``trimtab audit`` draws it."""
    by = {s.prompt: s for s in shown(spec)}
    if spec.recipe.plant == "plant_prompts":
        by |= {
            s.prompt: s for s in scenes(kinds_of(spec.recipe.options["kinds"]), 200, spec.seed, 13)
        }
    rows = [r for r in read_samples(folder) if r.get("reward") is not None]
    wanted = spec.config.get("rewards", [GOLD])[0].get("function", "")
    fact = import_function(wanted) if wanted.endswith(":all_facts_reward") else None
    for r in rows:
        scene = by[r["prompt"]]
        # Where long answers are wanted, that is what people want.
        r["gold"] = (
            fact([""], [r["completion"]], [scene.to_json()])[0]
            if fact
            else gold(scene, r["completion"]).total
        )
    golds = {(r["step"], r["id"], r["index"]): r["gold"] for r in rows}
    total = max(len(rows), config.steps * config.batch_size * config.method.group_size)
    lines = [
        {"step": r["step"], "prompt_id": r["id"], "index": r["index"], "proxy": r["reward"],
         "gold": golds[r["step"], r["id"], r["index"]], "kl": r.get("kl"), "source": "sandbox"}
        for r in draw(folder, AUDIT / total, spec.seed)
    ]  # fmt: skip
    put(folder / "audit.jsonl", lines)
    steps = sorted({r["step"] for r in rows})
    gold_of, proxy_of = (
        [float(np.mean([r[k] for r in rows if r["step"] == s])) for s in steps]
        for k in ("gold", "reward")
    )
    tail = set(steps[-max(1, len(steps) // 5) :])
    late = [r for r in rows if r["step"] in tail]
    late_symptoms = symptoms(late, config.rewards[0].options)
    best, worst = np.quantile([r["gold"] for r in rows], [0.98, 0.02])
    truth: dict[str, Any] = {
        "gold": gold_of,
        "proxy": proxy_of,
        # None is held to a reference where the method has no KL.
        "kl": [float(np.mean([r.get("kl") or 0.0 for r in rows if r["step"] == s])) for s in steps],
        "same": late_symptoms["same"],
        "below": float(np.mean([r["gold"] < best - 0.05 * max(best - worst, 1e-9) for r in late])),
        "rollouts": len(rows),
        "audited": len(lines),
    }
    name, least = spec.recipe.took
    if name:
        truth["symptom"] = late_symptoms[name]
        truth["took"] = truth["symptom"] >= least
    return truth


def symptoms(late: Sequence[dict[str, Any]], options: dict[str, Any]) -> dict[str, float]:
    """What a planted fault does to all late rollouts, told by what the doctor does not know.

    "template": the share of answers that are the template; "word": how often an answer says the paid
    word; "same": the share of answers that are the commonest one to their prompt in their step, where
    it is answered more than once.
    """
    late_texts = [" ".join(r["completion"].lower().split()) for r in late]
    shares: dict[str, float] = {}
    if options.get("template"):
        shares["template"] = float(np.mean([t == options["template"] for t in late_texts]))
    if options.get("word"):
        shares["word"] = float(np.mean([t.split().count(options["word"]) for t in late_texts]))
    by_prompt: dict[tuple[Any, Any], list[str]] = {}
    for r, text in zip(late, late_texts, strict=True):
        by_prompt.setdefault((r["step"], r["id"]), []).append(text)
    several = [texts for texts in by_prompt.values() if len(texts) > 1]
    most = sum(Counter(texts).most_common(1)[0][1] for texts in several)
    return shares | {"same": most / max(1, sum(map(len, several)))}


def _probe(folder: Path, spec: Spec, config: rl.RLConfig) -> None:
    """Belief swaps of the trained policy and of its start, and whether the reward pays for following."""
    asking = [s for s in scenes(("ask",), 48, spec.seed, 19)]
    pairs = [planted.swapped(s, i) for i, s in enumerate(asking)]
    results: list[dict[str, Any]] = []
    for of, path in (("policy", folder / "model"), ("reference", BASE)):
        model = ModelSpec(path=str(path), chat_template=config.model.chat_template)
        renderer = Renderer(
            load_tokenizer(model.path, model.chat_template),
            max_prompt_length=512,
            max_completion_length=64,
        )
        lm = LM.load(model, train=False)
        sampler = Sampler(lm.plain_attention(), renderer.tokenizer, stop_ids=renderer.stop_ids)
        flat = [s for pair in pairs for s in pair]
        groups = prompt_groups(flat, renderer)
        sampled = sampler(
            [Request(g.prompt, (0, i)) for i, g in enumerate(groups)],
            SamplingConfig(temperature=0.0, max_new_tokens=40),
        )
        texts = [renderer.completion(x[0].ids, x[0].finish).text for x in sampled]
        follows = [echoes(s, t) for s, t in zip(flat, texts, strict=True)]
        both = [follows[2 * i] and follows[2 * i + 1] for i in range(len(pairs))]
        results.append(
            {"of": of, "probe": "belief_swap", "value": float(np.mean(both)), "n": len(both)}
        )
    spec_of = config.rewards[0]
    if spec_of.function is not None:
        f = import_function(spec_of.function)
        one = [p[0] for p in pairs]
        agree = f(
            [""] * len(one),
            [s.opinion.sentence for s in one if s.opinion],
            scene=[s.to_json() for s in one],
            **spec_of.options,
        )
        true = f(
            [""] * len(one),
            [s.query.sentence for s in one if s.query],
            scene=[s.to_json() for s in one],
            **spec_of.options,
        )
        rate = float(np.mean([a > b for a, b in zip(agree, true, strict=True)]))
        results.append(
            {
                "of": "reward",
                "probe": "belief_swap",
                "value": rate,
                "n": len(one),
                "name": spec_of.name,
                "baseline": 0.0,
            }
        )
    write_atomic(folder / "probes.json", json.dumps({"probes": results}, indent=1).encode())
