"""Runs a recipe: its stages in order, each skipped when its output is complete."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

import trimtab
from trimtab.config import Config, build
from trimtab.errors import ConfigError
from trimtab.launch.commands import Command, find_stage_type
from trimtab.launch.plan import peak_mb
from trimtab.report.recipe_report import RECIPE_FILE, AnyChart, report_recipe
from trimtab.runs import Run, read_object, read_summary, write_atomic

log = logging.getLogger(__name__)


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
    """By name, in order. Each has ``type``, a command, and the keys of that command; "@name" at the
    start of a text is the folder of an earlier stage or an input, "@sandbox" the package's own."""
    figures: dict[str, str] = Field(default_factory=dict[str, str])
    """``summary.json``: dotted name -> "stage.dotted.name" of a stage's own summary."""
    charts: tuple[AnyChart, ...] = ()
    """Sections of ``report.html``, in order; without them curves of every stage."""
    expect: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Figures to expect, for the reader."""
    next: tuple[str, ...] = ()
    """Commands to try afterwards."""


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage of a recipe, resolved and checked."""

    name: str
    command: Command
    config: Config
    fingerprint: str
    """Of its settings and those of every stage before it."""
    folder: Path

    @property
    def marker(self) -> Path:
        """Holds the fingerprint that the folder was made with, and whether it is complete."""
        return self.folder / "stage.json"

    def read_marker(self) -> dict[str, Any]:
        """The content of the marker; empty when there is none."""
        return read_object(self.marker)

    @property
    def complete(self) -> bool:
        """Whether the folder holds the complete output of this stage."""
        marker = self.read_marker()
        return bool(marker.get("complete")) and marker.get("fingerprint") == self.fingerprint


def _resolve(value: Any, folders: dict[str, Path], where: str) -> Any:
    """``value`` with every "@name/rest" replaced by a path."""
    if isinstance(value, dict):
        return {k: _resolve(v, folders, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list):
        return [_resolve(v, folders, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, str) and value.startswith("@"):
        name, _, rest = value[1:].partition("/")
        if name not in folders:
            raise ConfigError(
                f"{where}: {value!r} is neither an input nor an earlier stage; use one of "
                f"{', '.join(folders)}"
            )
        return str(folders[name] / rest)
    return value


def _with_seed(values: dict[str, Any], config: type[Config], seed: int) -> dict[str, Any]:
    """``values`` with the recipe's seed, where the stage sets none itself."""
    if "seed" in config.model_fields:
        values = {"seed": seed, **values}
    if "loop" in config.model_fields:
        values = {**values, "loop": {"seed": seed, **values.get("loop", {})}}
    return values


def plan(recipe: Recipe, source: str) -> list[PlannedStage]:
    """Every stage with its configuration, checked before anything runs.

    Raises:
        ConfigError: a key is unknown or a stage refers to a later one; the path is named.
    """
    out = Path(recipe.out)
    stages: list[PlannedStage] = []
    folders = {"sandbox": Path(trimtab.__file__).parent / "sandbox"}
    for name, path in recipe.inputs.items():
        folders[name] = Path(path).expanduser()
        if not folders[name].exists():
            raise ConfigError(
                f"{source}: inputs.{name}: there is no {path}; give its place with "
                f"--inputs.{name} PATH"
            )
    for name, stage in recipe.stages.items():
        where = f"{source}: stages.{name}"
        values = {k: v for k, v in stage.items() if k not in ("type", "kind")}
        if "kind" in stage:
            log.warning(
                "%s: the key 'kind' is now 'type'; the old name goes with the next release", where
            )
        command = find_stage_type(str(stage.get("type", stage.get("kind"))), f"{where}.type")
        values = _resolve(values, folders, f"stages.{name}")
        config_class = command.load_config()
        if recipe.seed is not None:
            values = _with_seed(values, config_class, recipe.seed)
        config = build(config_class, {"out": str(out / name), **command.with_preset(values)}, where)
        earlier = stages[-1].fingerprint if stages else trimtab.__version__
        # Of what is written, not of what is resolved: a key that a later release adds changes nothing.
        text = json.dumps([command.name, values, earlier], sort_keys=True)
        fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
        stages.append(PlannedStage(name, command, config, fingerprint, out / name))
        folders[name] = out / name
    return stages


def run(recipe: Recipe, source: str, *, fresh: bool = False) -> dict[str, Any]:
    """Run the stages that are not complete, then write ``summary.json`` and ``report.html``.

    Returns:
        The recipe's figures by name.

    Raises:
        ConfigError: a stage's folder was made with other settings and ``fresh`` is not set.
    """
    started = time.monotonic()
    out = Path(recipe.out)
    for stage in plan(recipe, source):
        marker = stage.read_marker()
        if marker and marker.get("fingerprint") != stage.fingerprint:
            if not fresh:
                raise ConfigError(
                    f"{stage.folder} was made with other settings than {source} gives now; "
                    "choose another --out, or add --fresh to run this stage again"
                )
            shutil.rmtree(stage.folder)
        if stage.complete:
            log.info("%s: already complete", stage.name)
            continue
        marker = {"fingerprint": stage.fingerprint, "type": stage.command.name, "complete": False}
        stage.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(stage.marker, json.dumps(marker).encode())
        before = time.monotonic()
        stage.command.load_function()(stage.config)
        seconds = time.monotonic() - before
        marker |= {"complete": True, "seconds": seconds, "peak_rss_mb": peak_mb("cpu")}
        write_atomic(stage.marker, json.dumps(marker).encode())
    return finish(recipe, out, time.monotonic() - started)


def finish(recipe: Recipe, out: Path, seconds: float) -> dict[str, Any]:
    """Collect the figures, write the report, and log what was reached and what to try next."""
    markers = [read_object(path) for path in sorted(out.glob("*/stage.json"))]
    figures: dict[str, Any] = {
        "seconds": sum(m.get("seconds", 0.0) for m in markers),
        "peak_rss_mb": max((m.get("peak_rss_mb", 0.0) for m in markers), default=0.0),
    }
    for name, path in recipe.figures.items():
        stage, _, dotted = path.partition(".")
        value: Any = read_summary(out / stage)
        for part in dotted.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is None:
            raise ConfigError(f"figures.{name}: {out / stage}/summary.json has no {dotted!r}")
        figures[name] = value
    Run(str(out)).summary(figures)
    declared = recipe.model_dump(mode="json", include={"about", "charts"})
    text = yaml.safe_dump(declared, sort_keys=False, allow_unicode=True)
    write_atomic(out / RECIPE_FILE, text.encode())
    page = report_recipe(out)
    for name, value in figures.items():
        log.info(
            f"  {name:<28}{value:>10.3f}" if isinstance(value, float) else f"  {name:<28}{value}"
        )
    log.info("\nreport: %s", page)
    for command in recipe.next:
        log.info("  try: %s", command)
    return figures
