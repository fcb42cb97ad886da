"""The one function that every process of a training stage runs, whoever started it."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from trimtab import ranks
from trimtab.config import Config, build
from trimtab.runs.launch_spec import LaunchSpec

if TYPE_CHECKING:
    from trimtab.launch.commands import Command


def launch(command: Command, config: Config, prepare: Callable[[], None]) -> Any:
    """Run a training stage in this process, or start its processes and wait for them.

    Args:
        command: The command of the stage.
        config: Its configuration; the section ``launch`` says how it is started.
        prepare: Checks and prepares the output folder; one process calls it, once.

    Returns:
        The stage's metrics; None where other processes trained.
    """
    spec: LaunchSpec = getattr(config, "launch", LaunchSpec())
    if ranks.launched():
        return _train(command, config, spec, prepare)
    prepare()
    if spec.type == "torchrun":
        from trimtab.launch.torchrun import start

        start(command.name, config, spec)
        return None
    if spec.type == "ray":
        # Ray is an optional package.
        ray_launcher: Any = importlib.import_module("trimtab.launch.ray_launcher")
        ray_launcher.start_on_ray(command.name, config, spec)
        return None
    return command.load_function()(config)


def run_stage(name: str, values: Mapping[str, Any]) -> Any:
    """Train as one of several processes; RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set.

    The output folder must have been prepared by ``Command.prepare``.

    Args:
        name: The command: "sft", "grpo", …
        values: Its configuration as plain values (``config.model_dump(mode="json", by_alias=True)``).

    Returns:
        The stage's metrics, the same on every rank.

    Raises:
        RankError: another rank ended, or did not answer in time.
    """
    from trimtab.launch.commands import find_command

    command = find_command(name)
    config = build(command.load_config(), dict(values), f"trimtab {name}")
    return _train(command, config, getattr(config, "launch", LaunchSpec()), lambda: None)


def _train(command: Command, config: Config, spec: LaunchSpec, prepare: Callable[[], None]) -> Any:
    with ranks.started(spec.timeout) as joined:
        if not joined.is_main:
            logging.getLogger("trimtab").setLevel(logging.ERROR)
        joined.on_main(prepare)
        return command.load_function()(config)
