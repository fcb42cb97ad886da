"""The table of commands, for the command line and for the stages of recipes."""

from __future__ import annotations

import importlib
import logging
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trimtab.config import Config
from trimtab.errors import ConfigError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Command:
    """A verb of the command line, a type of stage in a recipe, or both: a row of commands.toml.

    Its modules are imported when it is called: ``trimtab --help`` needs none of them.
    """

    name: str
    group: str
    help: str
    function: str = ""
    """Takes the configuration; without ``config``, the arguments as typed."""
    config: str = ""
    usage: str = ""
    positional: str = ""
    """The key that words without a flag fill."""
    many: bool = False
    recipe: bool = False
    """Whether it may be a stage of a recipe."""
    stage: str = ""
    preset: str = ""
    """The key that a verb named after a method sets."""
    deprecated: str = ""
    """The command that replaces it; it is read for one release more, and not listed."""
    methods: Sequence[str] = ()
    verb: str = "{}"
    """Form of the verbs' names."""
    method: str = ""
    """The value of ``preset``, for such a verb."""

    def load_config(self) -> type[Config]:
        """The class of its configuration."""
        return _import(self.config)

    def load_function(self) -> Callable[[Any], Any]:
        """What it calls."""
        return _import(self.function or f"{self.config.partition(':')[0]}:main")

    def load_stage(self) -> type[Any]:
        """The class of the training stage."""
        return _import(self.stage)

    def run(
        self, config: Config, *, fresh: bool = False, files: Mapping[Path, str] | None = None
    ) -> Any:
        """Call it with its configuration, after ``prepare``.

        A training stage runs in the processes that its section ``launch`` asks for.

        Args:
            config: Its configuration.
            fresh: Move an earlier result aside.
            files: Texts by file that are written first, for the command to read.
        """
        from trimtab import ranks  # here, because it imports numpy

        if ranks.launched() > 1 and not self.stage:
            raise ConfigError(
                f"{self.name} is no training stage, so it runs in one process; start it without torchrun"
            )
        # A launcher that starts the processes again passes the same flags: the new results stay.
        restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"

        def prepare() -> None:
            self.prepare(config, fresh=fresh and not restarted)
            for file, text in (files or {}).items():
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")

        if self.stage:
            from trimtab.launch.spmd import launch

            return launch(self, config, prepare)
        prepare()
        return self.load_function()(config)

    def prepare(self, config: Config, *, fresh: bool) -> None:
        """Check that the output can be written; ``fresh`` moves an earlier result aside.

        Raises:
            ConfigError: it cannot, or there is no folder to move aside.
        """
        from trimtab.runs import check_writable, set_aside

        files = config.declared_keys("output_files")
        for key in sorted(files | config.declared_keys("output_folders")):
            value: str | None = getattr(config, key, None)
            if value and "://" not in value:
                check_writable(Path(value), key, is_file=key in files)
        out: str | None = getattr(config, "out", None)
        if fresh:
            if out is None:
                raise ConfigError(f"--fresh: {self.name} has no output folder; leave the flag out")
            set_aside(Path(out))

    def with_preset(self, values: dict[str, Any]) -> dict[str, Any]:
        """``values`` with the method that the verb is named after.

        Raises:
            ConfigError: they name another method.
        """
        if not self.method:
            return values
        block, _, key = self.preset.partition(".")
        inner = {key: self.method, **(values.get(block) or {})}
        if inner[key] != self.method:
            raise ConfigError(
                f"{self.preset}: {inner[key]!r} contradicts the command {self.name}; leave the key "
                f"out, or use trimtab {self._verb(str(inner[key]))}"
            )
        return {**values, block: inner}

    def verbs(self) -> list[Command]:
        """One command for each of its methods."""
        return [
            replace(self, name=self._verb(method), help=f"{self.name} by {method}", method=method)
            for method in self.methods
        ]

    def _verb(self, method: str) -> str:
        return self.verb.format(method).replace("_", "-")


def _import(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(f"trimtab.{module}"), name)


def _read_table() -> dict[str, Command]:
    table = tomllib.loads(Path(__file__).with_name("commands.toml").read_text(encoding="utf-8"))
    return {
        name: Command(name, group, **row)
        for group, rows in table.items()
        for name, row in rows.items()
    }


COMMANDS = _read_table()
METHOD_VERBS = {verb.name: verb for c in COMMANDS.values() for verb in c.verbs()}

_RENAMED_TYPES = {"world": "sandbox-data", "label": "sandbox-labels", "tasks": "word-problems"}
"""Types of a recipe's stage in the release before, besides those with an underscore."""


def find_command(name: str) -> Command:
    """The command of this name; an underscore in it is read as a dash, with a warning.

    Raises:
        ConfigError: there is none.
    """
    dashed = name.replace("_", "-")
    command = COMMANDS.get(dashed) or METHOD_VERBS.get(dashed)
    if command is None:
        names = ", ".join(c.name for c in COMMANDS.values() if not c.deprecated)
        raise ConfigError(f"{name!r} is not a command; there are {names}")
    _warn_renamed("the command", name, command.deprecated or dashed)
    return command


def find_stage_type(name: str, where: str) -> Command:
    """The command that a recipe's stage of this type runs; old names are read, with a warning.

    Raises:
        ConfigError: there is none; ``where`` says which stage it is.
    """
    new = _RENAMED_TYPES.get(name, name.replace("_", "-"))
    command = COMMANDS.get(new) or METHOD_VERBS.get(new)
    if command is None or not command.recipe:
        types = ", ".join(c.name for c in COMMANDS.values() if c.recipe and not c.deprecated)
        raise ConfigError(f"{where}: {name!r} is not the type of a stage; use one of {types}")
    _warn_renamed(f"{where}: the stage type", name, command.deprecated or new)
    return command


def _warn_renamed(what: str, old: str, new: str) -> None:
    if old != new:
        log.warning("%s %r is now %r; the old name goes with the next release", what, old, new)
