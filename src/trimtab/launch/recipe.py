"""Runs a recipe: its stages in order, each skipped when its output is complete."""

import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

import trimtab
from trimtab.config import Config, build
from trimtab.errors import ConfigError, DataError
from trimtab.kernels.allocator import return_freed_memory
from trimtab.launch.commands import Command, find_stage_type
from trimtab.launch.peak_memory import peak_rss_mb, reset_peak
from trimtab.report.recipe_report import RECIPE_FILE, AnyChart, report_recipe
from trimtab.runs import (
    Fingerprint,
    Run,
    check_writable,
    read_object,
    read_summary,
    refusal,
    set_aside,
    write_atomic,
)

log = logging.getLogger(__name__)
_FOLDER = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)


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

    @field_validator("stages")
    @classmethod
    def _names_are_folders(cls, stages: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name in stages:
            if not _FOLDER.fullmatch(name):
                raise ValueError(
                    f"{name!r}: the name of a stage is that of its folder: letters, digits, _, - and ., "
                    "beginning with a letter or digit"
                )
        return stages


class Marker(BaseModel):
    """How the output of a stage was made."""

    fingerprint: Fingerprint | None = None
    """None for one of an earlier release."""
    type: str = ""
    complete: bool = False
    seconds: float = 0.0
    peak_rss_mb: float = 0.0
    """The most resident memory of this process: of the stage, see ``peak_of``."""
    peak_of: Literal["stage", "process"] = "process"
    """"process": the system does not let the peak be reset, so it includes the stages before in the same
    process. The processes that ``launch`` starts are in neither."""
    peak_gpu_mb: float | None = None
    """The most memory that torch allocated on the GPU during the stage; None without one."""


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage of a recipe, resolved and checked."""

    name: str
    command: Command
    config: Config
    folder: Path

    @property
    def marker(self) -> Path:
        """Holds the fingerprint that the folder was made with, and whether it is complete."""
        return self.folder / "stage.json"

    def read_marker(self) -> Marker | None:
        """What the marker holds; None when there is none.

        Raises:
            DataError: it is damaged.
        """
        values = read_object(self.marker)
        if isinstance(values.get("fingerprint"), str):  # a hash, of an earlier release
            del values["fingerprint"]
        try:
            return Marker.model_validate(values) if values else None
        except ValidationError:
            raise DataError(
                f"{self.marker}: damaged; remove {self.folder} to run it again"
            ) from None


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
        stages.append(PlannedStage(name, command, config, out / name))
        folders[name] = out / name
    return stages


def run(recipe: Recipe, source: str, *, fresh: bool = False) -> dict[str, Any]:
    """Run the stages that are not complete, then write ``summary.json`` and ``report.html``.

    Returns:
        The recipe's figures by name.

    Raises:
        ConfigError: a stage's folder was made from other inputs and ``fresh`` is not set.
    """
    out = Path(recipe.out)
    check_writable(out, f"{source}: out")
    stages = plan(recipe, source)
    with Run(out) as folder:
        for stage in stages:
            _run_stage(stage, fresh=fresh)
        return finish(recipe, stages, folder)


def _run_stage(stage: PlannedStage, *, fresh: bool) -> None:
    """Run a stage unless its output is complete and was made from what it would be made from now."""
    # Only now: its inputs are the outputs of the stages before.
    fingerprint = Fingerprint.of(stage.config)
    marker = stage.read_marker()
    old = marker.fingerprint if marker else None
    if old is not None and (changes := old.changes(fingerprint)):
        if not fresh:
            raise refusal(stage.folder, changes)
        set_aside(stage.folder)
        marker = old = None
    if marker and marker.complete and (old is None or old.extent == fingerprint.extent):
        if old is None:
            log.warning("%s: made by an earlier release; its inputs are not compared", stage.folder)
            marker.fingerprint = fingerprint
            _write_marker(stage, marker)
        log.info("%s: already complete", stage.name)
        return
    marker = Marker(fingerprint=fingerprint, type=stage.command.name)
    stage.folder.mkdir(parents=True, exist_ok=True)
    _write_marker(stage, marker)
    before = time.monotonic()
    if reset_peak():
        marker.peak_of = "stage"
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    stage.command.run(stage.config)
    marker.complete = True
    marker.seconds, marker.peak_rss_mb = time.monotonic() - before, peak_rss_mb()
    if torch.cuda.is_available():
        marker.peak_gpu_mb = torch.cuda.max_memory_allocated() / 2**20
    return_freed_memory()
    _write_marker(stage, marker)


def _write_marker(stage: PlannedStage, marker: Marker) -> None:
    write_atomic(stage.marker, marker.model_dump_json(indent=1).encode("utf-8", "replace"))


def finish(recipe: Recipe, stages: Sequence[PlannedStage], folder: Run) -> dict[str, Any]:
    """Collect the figures, write the report, and log what was reached and what to try next.

    Raises:
        ConfigError: a stage has no such figure; the report is written without it.
    """
    out = folder.path
    markers = [marker for stage in stages if (marker := stage.read_marker())]
    figures: dict[str, Any] = {
        "seconds": sum(m.seconds for m in markers),
        "peak_rss_mb": max((m.peak_rss_mb for m in markers), default=0.0),
    }
    missing: list[str] = []
    for name, path in recipe.figures.items():
        stage, _, dotted = path.partition(".")
        summary = read_summary(out / stage)
        if (value := _at(summary, dotted)) is None:
            missing.append(
                f"figures.{name}: {out / stage}/summary.json has no {dotted!r}, but "
                f"{', '.join(_names(summary))}"
            )
        else:
            figures[name] = value
    folder.summary(figures)
    declared = recipe.model_dump(mode="json", include={"about", "charts"})
    text = yaml.safe_dump(declared, sort_keys=False, allow_unicode=True)
    write_atomic(out / RECIPE_FILE, text.encode())
    page = report_recipe(out)
    for name, value in figures.items():
        log.info(
            f"  {name:<28}{value:>10.3f}" if isinstance(value, float) else f"  {name:<28}{value}"
        )
    log.info("\nreport: %s", page)
    if missing:
        raise ConfigError("\n".join(missing))
    for command in recipe.next:
        log.info("  try: %s", command)
    return figures


def _at(summary: Any, dotted: str) -> Any:
    """The value of a figure; a metric's slashes are levels of the summary.

    >>> _at({"eval": {"logps": {"chosen": 1.0}}}, "eval.logps/chosen")
    1.0
    """
    for part in re.split(r"[./]", dotted):
        summary = summary.get(part) if isinstance(summary, dict) else None
    return summary


def _names(summary: Mapping[str, Any], before: str = "") -> list[str]:
    """Every figure of a summary.

    >>> _names({"eval": {"nll": 1.0}, "seconds": 2.0})
    ['eval.nll', 'seconds']
    """
    return [
        name
        for key, value in summary.items()
        for name in (
            _names(value, f"{before}{key}.") if isinstance(value, dict) else [before + key]
        )
    ]
