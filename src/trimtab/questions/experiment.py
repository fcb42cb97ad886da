"""Runs a question: starts, arms, effects, verdicts; resumable at any moment."""

from __future__ import annotations

import importlib
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.errors import ConfigError, DataError
from trimtab.launch.jobs import RESULT, Job
from trimtab.launch.jobs import run as run_jobs
from trimtab.questions import claim as registry
from trimtab.questions import earlier
from trimtab.questions.claim import Claim, Settings
from trimtab.questions.earlier import COST, Result
from trimtab.questions.measure import ArmResult, Effect, effect_of, mean_curves, short
from trimtab.questions.verdict import (
    LOOKS,
    PROVISIONAL_CONFIDENCE,
    Verdict,
    control_false_discoveries,
    from_prompts,
    from_seeds,
    over_conditions,
)
from trimtab.report.charts import Chart
from trimtab.runs import read_object, to_json, write_atomic
from trimtab.stats.uncertainty import Estimate

log = logging.getLogger(__name__)

TUNING = "tuning.json"
"""What each learning rate gave on the tuning seeds."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """What a file ``qNN.py`` defines."""

    start: Callable[[Path, int, Settings, Path], Path]
    """(folder, seed, settings, folder of all starts) -> the folder of what the arms of a seed share."""
    arm: Callable[[Path, Path, int, dict[str, Any], Settings], ArmResult]
    """(folder, start, seed, settings of the arm, settings) -> what the arm measures."""
    figure: Callable[[Result, Mapping[str, str]], Chart | None]
    """(result, words of a language) -> the figure of the page."""
    derive: Callable[[Mapping[str, ArmResult], Settings], dict[str, ArmResult]] | None = None
    """Arms computed from the others of a seed."""


def mean_over_seeds(result: Result, arm: str, metric: str) -> float:
    """What an arm measured, for a figure."""
    return float(np.mean(result["arms"][arm][metric]))


def load(number: int) -> Experiment:
    """The experiment of a question.

    Raises:
        ConfigError: there is none.
    """
    if number not in (numbers := available()):
        raise ConfigError(
            f"there is no question {number}; use one of {', '.join(map(str, numbers))}"
        )
    return importlib.import_module(f"trimtab.questions.q{number:02}").EXPERIMENT


def available() -> list[int]:
    """The questions with an experiment."""
    files = registry.HERE.glob("q[0-9][0-9].py")
    return sorted(int(f.stem[1:]) for f in files)


def run(
    number: int,
    out: Path,
    *,
    seeds: Sequence[int],
    size: float = 1.0,
    workers: int = 1,
    results: Path | None = None,
) -> Result:
    """Run what is missing of a question and write ``result.json`` and ``cost.json``.

    Args:
        out: Holds a folder for each question, and the starts that they share.
        seeds: In order; the first five are the first look.
        size: Factor of all sizes.
        workers: Processes at once, of one thread each.
        results: Folder of earlier results by number, whose seeds are not run again.

    Raises:
        ConfigError: seeds that were run with other claims or settings, or that are for tuning.
        DataError: an arm failed, or an earlier result was made with other claims or settings.
    """
    claims, settings, folder = _checked(number, out, seeds, size)
    previous = None if results is None else earlier.read(results / str(number), claims, seeds, size)
    missing = [s for s in seeds if previous is None or s not in previous["seeds"]]
    registry.freeze(folder, claims, settings, tuple(missing))
    jobs = [_start_job(out, number, seed, size) for seed in missing]
    jobs += [_arm_job(folder, number, seed, size, arm) for seed in missing for arm in settings.arms]
    _run(jobs, folder, workers, settings.minutes * 60 * len(missing) * size)
    seconds = {j.key: read_object(folder / j.key / RESULT)["seconds"] for j in jobs}
    new = assemble(number, folder, claims, settings, missing, size) if missing else None
    result = earlier.joined(previous, new, seeds)
    if previous is not None and results is not None:
        seconds = read_object(results / str(number) / COST)["jobs"] | seconds
    write_result(folder, judge([result])[0])
    cost = {"seconds": sum(seconds.values()), "seconds_per_seed": sum(seconds.values()) / len(seeds), "jobs": seconds}  # fmt: skip
    write_atomic(folder / COST, (to_json(cost, indent=1) + "\n").encode())
    return read_object(folder / RESULT)


def _checked(
    number: int, out: Path, seeds: Sequence[int], size: float
) -> tuple[tuple[Claim, ...], Settings, Path]:
    load(number)
    claims = registry.load_claims()[number]
    settings = registry.load_settings()[number]
    registry.check_arms(claims, settings)
    if not 0 < size <= 1:
        raise ConfigError(f"--size: {size:g} is not above 0 and at most 1")
    if not seeds or len(set(seeds)) != len(seeds) or len(seeds) > LOOKS[-1]:
        raise ConfigError(f"--seeds: give 1 to {LOOKS[-1]} different ones, not {list(seeds)}")
    if settings.tuning and (wrong := sorted(set(seeds) & set(settings.tuning.seeds))):
        raise ConfigError(f"--seeds: {wrong} chose the learning rates and are never reported")
    return claims, settings.scaled(size), out / str(number)


def _start_job(out: Path, number: int, seed: int, size: float) -> Job:
    args = {"number": number, "size": size, "starts": str(out / "starts")}
    return Job("start", "shared", seed, f"{__name__}:make_start", args)


def _arm_job(
    folder: Path, number: int, seed: int, size: float, arm: str, lr: float | None = None
) -> Job:
    name = re.sub(r"[^\w.=,-]", "_", arm) + ("" if lr is None else f"@{lr:g}")
    args = {"number": number, "size": size, "arm": arm, "lr": lr,
            "start": str(folder / f"start-shared-{seed}")}  # fmt: skip
    return Job("arm", name, seed, f"{__name__}:run_arm", args)


def _run(jobs: Sequence[Job], folder: Path, workers: int, seconds: float) -> None:
    """Starts first, since arms need them; with one worker all in one process.

    Raises:
        DataError: a job failed.
    """
    starts = [j for j in jobs if j.row == "start"]
    arms = [j for j in jobs if j.row != "start"]
    for phase in [jobs] if workers == 1 else [starts, arms]:
        missing = [j for j in phase if not (folder / j.key / RESULT).is_file()]
        batch = max(1, math.ceil(len(missing) / workers / (1 if workers == 1 else 3)))
        failed = run_jobs(missing, folder, workers, batch=batch, seconds_left=seconds / workers)
        if failed:
            name, why = next(iter(failed.items()))
            raise DataError(
                f"{len(failed)} of {len(phase)} jobs failed, the first: {name}: {why}; run the same "
                "command again to resume"
            )


def make_start(out: Path, seed: int, number: int, size: float, starts: str) -> dict[str, Any]:
    """The job that makes what the arms of a seed share."""
    settings = registry.load_settings()[number].scaled(size)
    return {"folder": str(load(number).start(out, seed, settings, Path(starts)))}


def run_arm(
    out: Path, seed: int, number: int, size: float, arm: str, lr: float | None, start: str
) -> dict[str, Any]:
    """The job of one arm; ``lr`` replaces its learning rate."""
    settings = registry.load_settings()[number].scaled(size)
    values = settings.arms[arm] if lr is None else {**settings.arms[arm], "lr": lr}
    shared = Path(read_object(Path(start) / RESULT)["folder"])
    return load(number).arm(out, shared, seed, {"name": arm, **values}, settings).as_dict()


def assemble(
    number: int,
    folder: Path,
    claims: Sequence[Claim],
    settings: Settings,
    seeds: Sequence[int],
    size: float,
) -> Result:
    """The result of the finished jobs, without verdicts. The same jobs give the same bytes."""
    derive = load(number).derive
    by_seed: dict[int, dict[str, ArmResult]] = {}
    for seed in seeds:
        arms = {
            arm: ArmResult.from_dict(
                read_object(folder / _arm_job(folder, number, seed, size, arm).key / RESULT)
            )
            for arm in settings.arms
        }
        by_seed[seed] = {**arms, **(derive(arms, settings) if derive else {})}
    return result_of(number, by_seed, claims, settings, size)


def result_of(
    number: int,
    by_seed: Mapping[int, Mapping[str, ArmResult]],
    claims: Sequence[Claim],
    settings: Settings,
    size: float,
) -> Result:
    """Effects of every claim, and means of every arm, from what the arms gave in each seed."""
    of_seeds = list(by_seed.values())
    return {
        "question": number,
        "hash": registry.digest(tuple(claims), settings),
        "size": size,
        "seeds": list(by_seed),
        "effects": {c.key: _effects(c, by_seed) for c in claims},
        "arms": {
            arm: {
                metric: short([arms[arm].measures[metric].value for arms in of_seeds])
                for metric in result.measures
            }
            for arm, result in of_seeds[0].items()
        },
        "curves": {
            arm: {k: short(v) for k, v in means.items()}
            for arm in of_seeds[0]
            if (means := mean_curves([arms[arm] for arms in of_seeds]))
        },
    }


def _effects(claim: Claim, by_seed: Mapping[int, Mapping[str, ArmResult]]) -> dict[str, Any]:
    """The effect of each seed; of a single seed its interval over prompts too."""
    effects: list[Effect] = [effect_of(claim, arms) for arms in by_seed.values()]
    values: dict[str, Any] = {"seeds": short([e.value for e in effects])}
    if len(effects) == 1 and effects[0].draws is not None:
        tail = (1 - PROVISIONAL_CONFIDENCE) / 2
        values["prompts"] = short(np.quantile(effects[0].draws, [tail, 1 - tail]).tolist())
    return values


def judge(results: Sequence[Result]) -> list[Result]:
    """The results with verdicts; false discoveries are controlled over all their claims together."""
    claims = {c.key: c for of_one in registry.load_claims().values() for c in of_one}
    keys = [(r, key) for r in results for key in r["effects"]]
    verdicts = control_false_discoveries([_verdict(claims[k], r["effects"][k]) for r, k in keys])
    judged: list[Result] = [{**r, "claims": {}, "family": len(keys)} for r in results]
    by_question = {r["question"]: r for r in judged}
    for (r, key), verdict in zip(keys, verdicts, strict=True):
        by_question[r["question"]]["claims"][key] = _as_dict(verdict)
    for result in judged:
        conditions: dict[str, list[Any]] = {}
        for key, values in result["claims"].items():
            conditions.setdefault(claims[key].id, []).append(values["outcome"])
        result["verdicts"] = {name: over_conditions(of) for name, of in conditions.items()}
    return judged


def _verdict(claim: Claim, effects: Mapping[str, Any]) -> Verdict:
    values: list[float] = effects["seeds"]
    if len(values) > 1:
        return from_seeds(values, claim.smallest_effect)
    low, high = effects.get("prompts") or (math.nan, math.nan)
    return from_prompts(Estimate(values[0], low, high), claim.smallest_effect)


def _as_dict(verdict: Verdict) -> dict[str, Any]:
    numbers = {
        "effect": verdict.effect.value, "low": verdict.effect.low, "high": verdict.effect.high,
        "p_holds": verdict.p_holds, "p_fails": verdict.p_fails,
    }  # fmt: skip
    return {
        "outcome": verdict.outcome,
        "reason": verdict.reason,
        "seeds": verdict.seeds,
        "provisional": verdict.provisional,
        "seeds_needed": verdict.seeds_needed,
        **{k: None if math.isnan(v) else short([v])[0] for k, v in numbers.items()},
    }


def write_result(folder: Path, result: Result) -> None:
    """Write ``result.json``."""
    write_atomic(folder / RESULT, (to_json(result, indent=1) + "\n").encode())


def read_result(folder: Path) -> Result:
    """The result in a question's folder, checked against the claims and settings of now.

    Raises:
        ConfigError: there is none.
        DataError: it was made with others.
    """
    file = folder / RESULT
    if not file.is_file():
        raise ConfigError(f"{folder}: no {RESULT}; run the question first")
    result = read_object(file)
    number = result["question"]
    claims, settings = registry.load_claims()[number], registry.load_settings()[number]
    registry.check_frozen(result, claims, settings, str(file))
    return result


def tune(number: int, out: Path, *, seeds: Sequence[int] = (), size: float = 1.0, workers: int = 1) -> dict[str, float]:  # fmt: skip
    """The best learning rate of every arm on the tuning seeds, to be written into ``qNN.yaml``.

    Raises:
        ConfigError: nothing of the question has a learning rate.
        DataError: an arm failed.
    """
    settings = registry.load_settings()[number].scaled(size)
    tuning = settings.tuning
    if tuning is None:
        raise ConfigError(f"question {number}: nothing has a learning rate to tune")
    seeds, folder = tuple(seeds) or tuning.seeds, out / f"{number}-tuning"
    if wrong := sorted(set(seeds) - set(tuning.seeds)):
        raise ConfigError(f"--seeds: {wrong} are not among the tuning seeds {list(tuning.seeds)}")
    means: dict[str, dict[float, float]] = {arm: {} for arm in settings.tuned}
    to_try = {(arm, lr) for arm in settings.tuned for lr in tuning.rates}
    jobs = [_start_job(out, number, seed, size) for seed in seeds]
    while to_try:
        cells = {
            (arm, lr): [_arm_job(folder, number, seed, size, arm, lr) for seed in seeds]
            for arm, lr in sorted(to_try)
        }
        jobs += [job for of_cell in cells.values() for job in of_cell]
        _run(jobs, folder, workers, 60 * settings.minutes * len(seeds) * len(tuning.rates) * size)
        for (arm, lr), of_cell in cells.items():
            values = [
                read_object(folder / job.key / RESULT)["measures"][tuning.metric]["value"]
                for job in of_cell
            ]
            means[arm][lr] = float(np.mean(values))
        to_try = {
            (arm, lr) for arm, tried in means.items() if (lr := tuning.next_rate(tried)) is not None
        }
    best = {arm: tuning.best(tried) for arm, tried in means.items()}
    table = {
        arm: {f"{lr:g}": mean for lr, mean in sorted(tried.items())} for arm, tried in means.items()
    }
    text = to_json({"seeds": list(seeds), tuning.metric: table, "lr": best}, indent=1)
    write_atomic(out / str(number) / TUNING, (text + "\n").encode())
    return best
