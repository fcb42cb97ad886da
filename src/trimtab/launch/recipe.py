"""Stages in order, from one recipe; each is skipped when its output is already whole."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

import trimtab
from trimtab.config import Config, build
from trimtab.datagen import (
    best_of_n,
    calibrate_judge,
    judge_labels,
    mix,
    revise,
    sample,
    sandbox_data,
    step_labels,
    word_problem_data,
)
from trimtab.datagen import scratch as prepare
from trimtab.errors import ConfigError
from trimtab.evaluate import accuracy, compare
from trimtab.launch.plan import peak_mb
from trimtab.report.run_report import report_pipeline
from trimtab.runs import Run, read_summary, write_atomic
from trimtab.runs.console import console
from trimtab.train import dpo, online_dpo, process, reward, rl, sft

log = logging.getLogger(__name__)

KINDS: dict[str, tuple[type[Config], Callable[[Any], dict[str, Any]]]] = {
    "function": (prepare.FunctionConfig, prepare.function),
    "scratch": (prepare.ScratchConfig, prepare.scratch),
    "world": (sandbox_data.WorldConfig, sandbox_data.world),
    "label": (sandbox_data.LabelConfig, sandbox_data.label),
    "tasks": (word_problem_data.TasksConfig, word_problem_data.tasks),
    "sft": (sft.SFTConfig, sft.main),
    "reward": (reward.RewardConfig, reward.main),
    "process": (process.ProcessConfig, process.main),
    "step_labels": (step_labels.StepLabelsConfig, step_labels.main),
    "dpo": (dpo.PreferenceConfig, dpo.main),
    "online_dpo": (online_dpo.OnlineConfig, online_dpo.main),
    "best_of_n": (best_of_n.BestOfNConfig, best_of_n.main),
    "sample": (sample.SampleConfig, sample.main),
    "judge": (judge_labels.JudgeConfig, judge_labels.main),
    "calibrate": (calibrate_judge.CalibrateConfig, calibrate_judge.main),
    "revise": (revise.ReviseConfig, revise.main),
    "accuracy": (accuracy.AccuracyConfig, accuracy.main),
    "mix": (mix.MixConfig, mix.main),
    "rl": (rl.RLConfig, rl.main),
    "compare": (compare.CompareConfig, compare.main),
    "solved": (compare.SolvedConfig, compare.main),
}


class Recipe(Config):
    """A pipeline as a file."""

    about: str = ""
    """What it does, in a line; ``trimtab recipes`` shows it."""
    out: str
    """Folder that holds a folder for each stage, ``summary.json`` and ``report.html``."""
    seed: int | None = None
    """Seed of every stage that does not set its own."""
    inputs: dict[str, str] = Field(default_factory=dict[str, str])
    """Files and folders from outside, by name: ``--inputs.NAME PATH`` changes one."""
    stages: dict[str, dict[str, Any]]
    """By name, in order. Each has ``kind`` and the keys of that kind's command; "@name" at the
    start of a text stands for the folder of an earlier stage or for an input, "@sandbox" for the
    package's own."""
    figures: dict[str, str] = Field(default_factory=dict[str, str])
    """``summary.json``: dotted name -> "stage.dotted.name" of a stage's own summary."""
    expect: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Figures to expect, for the reader."""
    next: tuple[str, ...] = ()
    """Commands to try afterwards."""


@dataclass(slots=True)
class Planned:
    """A stage, resolved."""

    name: str
    kind: str
    config: Config
    fingerprint: str
    folder: Path

    @property
    def marker(self) -> Path:
        """Says what the folder was made with, and whether it is whole."""
        return self.folder / "stage.json"

    def found(self) -> dict[str, Any]:
        """What the marker says; empty when there is none."""
        if not self.marker.is_file():
            return {}
        return json.loads(self.marker.read_text(encoding="utf-8"))

    @property
    def whole(self) -> bool:
        """Whether the folder holds this stage's whole output."""
        mark = self.found()
        return bool(mark.get("whole")) and mark.get("fingerprint") == self.fingerprint


def _resolve(value: Any, known: dict[str, Path], where: str) -> Any:
    if isinstance(value, dict):
        return {k: _resolve(v, known, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list):
        return [_resolve(v, known, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, str) and value.startswith("@"):
        name, _, rest = value[1:].partition("/")
        if name not in known:
            raise ConfigError(
                f"{where}: {value!r} names no input and no earlier stage; there are {', '.join(known)}"
            )
        return str(known[name] / rest)
    return value


def _seed(values: dict[str, Any], kind: type[Config], seed: int) -> None:
    """Give the stage the recipe's seed where it says none."""
    if "seed" in kind.model_fields:
        values.setdefault("seed", seed)
    if "loop" in kind.model_fields:
        values["loop"] = {"seed": seed, **values.get("loop", {})}


def plan(recipe: Recipe, source: str) -> list[Planned]:
    """Every stage with its configuration, checked before anything runs.

    Raises:
        ConfigError: a key is unknown or a stage refers to a later one; the path is named.
    """
    out = Path(recipe.out)
    planned: list[Planned] = []
    known = {"sandbox": Path(trimtab.__file__).parent / "sandbox"}
    for name, path in recipe.inputs.items():
        known[name] = Path(path).expanduser()
        if not known[name].exists():
            raise ConfigError(
                f"{source}: inputs.{name}: {path} is not there; say where with --inputs.{name} PATH"
            )
    for name, raw in recipe.stages.items():
        kind = raw.get("kind")
        if kind not in KINDS:
            raise ConfigError(
                f"{source}: stages.{name}.kind: {kind!r} is not one of {', '.join(KINDS)}"
            )
        if kind == "solved":
            log.warning(
                "%s: stages.%s: solved is now compare with pass_at; the old name goes with the next "
                "release",
                source,
                name,
            )
        where = f"stages.{name}"
        values = {k: v for k, v in raw.items() if k != "kind"}
        values = _resolve(values, known, where)
        if recipe.seed is not None:
            _seed(values, KINDS[kind][0], recipe.seed)
        config = build(KINDS[kind][0], {"out": str(out / name), **values}, f"{source}: {where}")
        earlier = planned[-1].fingerprint if planned else trimtab.__version__
        # What was given, not what follows: a key that a later commit adds leaves old stages whole.
        text = json.dumps([kind, values, earlier], sort_keys=True)
        fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
        planned.append(Planned(name, kind, config, fingerprint, out / name))
        known[name] = out / name
    return planned


def run(recipe: Recipe, source: str, *, fresh: bool = False) -> dict[str, Any]:
    """Run what is not yet whole, then write ``summary.json`` and ``report.html``.

    Raises:
        ConfigError: a stage's folder was made with other settings and ``fresh`` is not set.
    """
    started = time.monotonic()
    out = Path(recipe.out)
    for stage in plan(recipe, source):
        old = stage.found()
        if old and old.get("fingerprint") != stage.fingerprint:
            if not fresh:
                raise ConfigError(
                    f"{stage.folder} was made with other settings than {source} gives now; "
                    "choose another --out, or add --fresh to do it again"
                )
            shutil.rmtree(stage.folder)
        if stage.whole:
            console.print(f"[dim]{stage.name}: already whole[/dim]")
            continue
        mark: dict[str, Any] = {
            "fingerprint": stage.fingerprint,
            "kind": stage.kind,
            "whole": False,
        }
        stage.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(stage.marker, json.dumps(mark).encode())
        before = time.monotonic()
        KINDS[stage.kind][1](stage.config)
        spent = time.monotonic() - before
        mark |= {"whole": True, "seconds": spent, "peak_rss_mb": peak_mb("cpu")}
        write_atomic(stage.marker, json.dumps(mark).encode())
    return finish(recipe, out, time.monotonic() - started)


def finish(recipe: Recipe, out: Path, seconds: float) -> dict[str, Any]:
    """Gather the figures, write the report, say what was reached and what to try next."""
    marks = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(out.glob("*/stage.json"))]
    figures: dict[str, Any] = {
        "seconds": sum(m.get("seconds", 0.0) for m in marks),
        "peak_rss_mb": max((m.get("peak_rss_mb", 0.0) for m in marks), default=0.0),
    }
    for name, where in recipe.figures.items():
        stage, _, dotted = where.partition(".")
        value: Any = read_summary(out / stage)
        for part in dotted.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is None:
            raise ConfigError(f"figures.{name}: {where!r} is not in {out / stage}/summary.json")
        figures[name] = value
    summary = Run(str(out))
    summary.summary(figures)
    page = report_pipeline(out)
    for name, value in figures.items():
        console.print(
            f"  {name:<28}{value:>10.3f}" if isinstance(value, float) else f"  {name:<28}{value}"
        )
    console.print(f"\nreport: {page}")
    for command in recipe.next:
        console.print(f"  try: {command}")
    return figures
