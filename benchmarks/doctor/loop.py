"""The cost of the live doctor, and the gold that the guard recovers by acting on its audit."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.doctor.plan import RECIPES, Recipe, Spec, specs
from benchmarks.doctor.run import STAGES, configured, kinds_of
from benchmarks.doctor.worlds import put, scenes
from trimtab.data.load_tokenizer import load_tokenizer
from trimtab.data.render import Renderer
from trimtab.datagen.sandbox_data import prompt_groups
from trimtab.models.load import LM, ModelSpec
from trimtab.runs import Run, read_summary
from trimtab.sample.sampler import Request, Sampler, SamplingConfig
from trimtab.sandbox.world import gold
from trimtab.train import loop

EVERY = 50
"""``loop.doctor_steps`` of the overhead measurement, as in ``docs/doctor.md``."""
HARMED = ("noisy-rm", "pays-words", "loose", "no-brake")
WELL = ("grpo", "grpo-rm")
HARMED_SEEDS, WELL_SEEDS = range(3, 7), range(3, 11)
"""Seeds 0 to 2 were used while the guard was developed."""
AUDIT = {
    "gold": {"function": "trimtab.sandbox.world:gold_reward"},
    "share": 0.25,
    "act": "stop",
}
"""A quarter of rollouts and a block of the first batch: 260 of the 960 of a run; 1 % of a run of 26,000."""
ASKED = 384
"""Prompts on which the gold score of a policy is measured."""


def overhead(out: Path, looks: int = 4) -> dict[str, Any]:
    """CPU seconds of the live diagnoses of a run, compared with its training; one every ``EVERY`` steps.

    The diagnoses are timed directly, because two blocks of steps differ by more than one costs.
    """
    spec = next(s for s in specs([0]) if s.recipe.name == "grpo")
    folder = out / "overhead"
    shutil.rmtree(folder, ignore_errors=True)
    more = {"steps": EVERY * looks, "loop": {"doctor_steps": EVERY}}
    config = configured(spec, out, folder, more)
    spent: list[float] = []
    examine_live = loop.examine_live

    def look(path: Path, total: int) -> None:
        since = time.process_time()
        examine_live(path, total)
        spent.append(time.process_time() - since)

    stage = STAGES["rl"][1](config)
    run = Run(folder, config.model_dump(mode="json"))
    loop.examine_live = look
    since = time.process_time()
    try:
        loop.fit(stage, run, config.loop)
    finally:
        loop.examine_live = examine_live
    steps = time.process_time() - since - sum(spent)
    run.close()
    return {"every": EVERY, "looks": spent, "steps": steps, "share": sum(spent) / steps}


def worth(path: str, task: str, seed: int) -> float:
    """Mean gold of a policy's completions of ``ASKED`` prompts of the task that no run has seen."""
    renderer = Renderer(load_tokenizer(path), max_prompt_length=512, max_completion_length=64)
    lm = LM.load(ModelSpec(path=path), train=False)
    sampler = Sampler(lm.plain_attention(), renderer.tokenizer, stop_ids=renderer.stop_ids)
    unseen = scenes(kinds_of(task), ASKED, seed, 23)
    sampled = sampler(
        [Request(g.prompt, (0, i)) for i, g in enumerate(prompt_groups(unseen, renderer))],
        SamplingConfig(max_new_tokens=36),
    )
    texts = [renderer.completion(x[0].ids, x[0].finish).text for x in sampled]
    return float(np.mean([gold(s, t).total for s, t in zip(unseen, texts, strict=True)]))


def trained(recipe: Recipe, seed: int, out: Path, audit: dict[str, Any]) -> dict[str, Any]:
    """Train one run: gold of the start and of the exported policy, its steps, and the guard's summary."""
    spec = Spec(recipe, seed)
    folder = out / f"{recipe.name}-{seed}{'-guarded' if audit else ''}"
    shutil.rmtree(folder, ignore_errors=True)
    config = configured(spec, out, folder, {"audit": audit} if audit else {})
    stage = STAGES[recipe.stage][1](config)
    run = Run(folder, config.model_dump(mode="json"))
    loop.fit(stage, run, config.loop)
    run.close()
    result = {
        "start": worth(config.model.path, spec.task, seed),
        "end": worth(str(folder / "model"), spec.task, seed),
        "steps": stage.steps,
        "audit": read_summary(folder).get("audit", {}),
    }
    shutil.rmtree(folder)
    return result


def closed(
    out: Path,
    minutes: float,
    harmed: Iterable[int] = HARMED_SEEDS,
    well: Iterable[int] = WELL_SEEDS,
) -> dict[str, Any]:
    """Pairs of runs without and with the guard: gold recovered on faulty runs and lost on healthy ones.

    The lost gold is that of the start minus that at the end of the run without the guard. An
    interrupted measurement resumes; no pair starts after ``minutes``.
    """
    file = out / "closed-loop.jsonl"
    rows: list[dict[str, Any]] = (
        [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    )
    done = {(r["recipe"], r["seed"]) for r in rows}
    began = time.monotonic()
    wanted = {(n, s) for n in HARMED for s in harmed} | {(n, s) for n in WELL for s in well}
    named = {r.name: r for r in RECIPES}
    # All of them for each seed: ``specs`` would take two plants of one alarm in turn.
    for spec in (Spec(named[n], s) for n, s in sorted(wanted, key=lambda w: (w[1], w[0]))):
        name = spec.recipe.name
        if (name, spec.seed) not in wanted - done:
            continue
        if time.monotonic() - began > 60 * minutes:
            break
        alone, guarded = (trained(spec.recipe, spec.seed, out, a) for a in ({}, AUDIT))
        audit = guarded["audit"]
        row = {"recipe": name, "seed": spec.seed, "start": alone["start"], "alone": alone["end"],
               "guarded": guarded["end"], "steps": alone["steps"], "ended": guarded["steps"],
               "back_to": int(audit.get("handed_over", 0)), "audited": int(audit["rollouts"])}  # fmt: skip
        print(row, flush=True)
        rows.append(row)
        put(file, rows)
    return {"runs": rows, **figures(rows)}


def figures(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The two targets: gold recovered, with a bootstrap interval over runs, and gold lost by healthy runs.

    A healthy recipe can do harm on some seed, so the loss is also reported over only those runs whose
    gold did not end below the start without the guard.
    """
    ill = [r for r in runs if r["recipe"] in HARMED]
    well = [r for r in runs if r["recipe"] in WELL]

    def counts(of: Sequence[dict[str, Any]]) -> dict[str, int]:
        early = sum(r["ended"] < r["steps"] for r in of)
        return {"runs": len(of), "stopped early": early,
                "handed over at the end": sum(r["back_to"] > 0 for r in of) - early}  # fmt: skip

    def recovered(of: Sequence[dict[str, Any]]) -> float:
        hurt = [r for r in of if r["alone"] < r["start"]]
        lost = sum(r["start"] - r["alone"] for r in hurt)
        return sum(r["guarded"] - r["alone"] for r in hurt) / lost if lost else float("nan")

    summary: dict[str, Any] = {"faulty": counts(ill)}
    if ill:
        rng = np.random.default_rng(0)
        draws = [
            recovered([ill[int(i)] for i in rng.integers(0, len(ill), len(ill))])
            for _ in range(2000)
        ]
        summary["recovered"] = recovered(ill)
        summary["recovered, 95 %"] = np.nanpercentile(draws, [2.5, 97.5]).tolist()
        summary["by recipe"] = {n: recovered([r for r in ill if r["recipe"] == n]) for n in HARMED}
    summary["healthy"] = counts(well)
    summary["healthy, by recipe"] = {n: loss([r for r in well if r["recipe"] == n]) for n in WELL}
    summary["healthy, gold did not fall"] = loss([r for r in well if r["alone"] >= r["start"]])
    return summary


def loss(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean share of the gold without the guard that is lost with it, and its standard error."""
    lost = np.array([(r["alone"] - r["guarded"]) / r["alone"] for r in runs])
    n = len(lost)
    if n < 2:
        return {"runs": n}
    return {
        "runs": n,
        "lost": float(lost.mean()),
        "standard error": float(lost.std(ddof=1)) / n**0.5,
    }
