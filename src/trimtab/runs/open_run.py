"""Opening a run folder to write: locked, and only to continue with the same inputs."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from pathlib import Path

import trimtab
from trimtab.config import Config
from trimtab.errors import ConfigError
from trimtab.runs.fingerprint import FILE, Fingerprint, read_fingerprint
from trimtab.runs.folder import Run
from trimtab.runs.lock import lock, unlock

log = logging.getLogger(__name__)
_RESULTS = ("metrics.jsonl", "summary.json", "checkpoints/*", "model/*", "parts/*", "*.sqlite3")
"""What a run folder holds once something was computed."""


def open_run(config: Config, out: str | Path, tracker: str = "none") -> Run:
    """The run folder ``out`` of a configuration, locked until it is closed.

    Raises:
        ConfigError, DataError: as for ``claim``.
    """
    claim(config, Path(out))
    with ExitStack() as on_failure:
        on_failure.callback(unlock, Path(out))
        run = Run(out, config.model_dump(mode="json"), tracker)
        on_failure.pop_all()
    return run


def claim(config: Config, folder: Path) -> None:
    """Create and lock a folder for the results of a configuration, and write its fingerprint.

    Raises:
        ConfigError: it cannot be created, another process writes to it, or it holds results of other
            inputs; every difference is named.
        DataError: the data cannot be read.
    """
    check_writable(folder, "out")
    new = Fingerprint.of(config)
    folder.mkdir(parents=True, exist_ok=True)
    lock(folder)
    with ExitStack() as on_failure:
        on_failure.callback(unlock, folder)
        require_same(folder, new)
        on_failure.pop_all()
    new.write(folder)


def has_results(folder: Path) -> bool:
    """Whether something was computed in a run folder."""
    return any(file.stat().st_size for pattern in _RESULTS for file in folder.glob(pattern))


def require_same(folder: Path, new: Fingerprint) -> None:
    """Check that the results in a run folder, if there are any, were made from the same inputs.

    Raises:
        ConfigError: they were not.
    """
    if not has_results(folder):
        return
    old = read_fingerprint(folder)
    if old is None:
        log.warning(
            "%s holds results without %s: an earlier release made them, so it cannot be checked that "
            "data, model and settings are the same",
            folder,
            FILE,
        )
        return
    if changes := old.changes(new):
        raise refusal(folder, changes)
    if old.version != new.version:
        log.warning("%s: made by trimtab %s, this is %s", folder, old.version, trimtab.__version__)


def refusal(folder: Path, changes: list[str]) -> ConfigError:
    """The error about a folder that holds results of other inputs."""
    return ConfigError(
        "\n  ".join((f"{folder} holds results of other inputs:", *changes))
        + "\nChoose another --out, or add --fresh (in Python: fresh=True) to move the old results aside "
        "and start again."
    )


def set_aside(folder: Path) -> None:
    """Move a folder with results to a free name next to it: NAME.old-1, NAME.old-2, …

    Raises:
        ConfigError: another process is writing to it, or it is the current folder.
    """
    if Path.cwd().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"--fresh: {folder} is the current folder or above it; name another --out"
        )
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    lock(folder)
    number = 1
    while (target := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    folder.rename(target)
    unlock(folder)
    log.info("%s was moved to %s; remove it when it is no longer needed", folder, target)


def check_writable(path: Path, key: str, *, is_file: bool = False) -> None:
    """Check that a folder, or a file, can be written at ``path``.

    Raises:
        ConfigError: something is in the way, or the permission is missing.
    """
    if is_file and path.is_dir():
        raise ConfigError(f"{key}: {path} is a folder; give the path of a file")
    parent = path.parent if is_file else path
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir():
        raise ConfigError(f"{key}: {path} cannot be created, because {parent} is a file")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(f"{key}: {path} cannot be written: no permission to write to {parent}")
