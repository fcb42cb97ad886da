"""Outside places for metrics, imported only when asked for."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from trimtab.errors import ConfigError
from trimtab.runs.files import read_object, write_atomic

log = logging.getLogger(__name__)
FILE = "tracker.json"
"""The id of the run at each tracker."""


class Tracker(Protocol):
    """An outside place for metrics."""

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Send one step's metrics."""
        ...

    def close(self) -> None:
        """Finish."""
        ...


class _Nowhere:
    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


class _WandbLike:
    """Weights & Biases, and trackio, which has the same calls."""

    def __init__(self, package: Any, project: str, path: Path, config: Mapping[str, Any]) -> None:
        self._package = package
        # wandb knows a run by its id, trackio by its name.
        key = "name" if package.__name__ == "trackio" else "id"
        stored = _stored_run(path, package.__name__)
        names = {"name": path.name} if stored is None else {key: stored}
        resume = "never" if stored is None else "allow"
        run = package.init(project=project, config=config, resume=resume, **names)
        _store_run(path, package.__name__, str(getattr(run, key)))

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._package.log({k: v for k, v in metrics.items() if v is not None}, step=step)

    def close(self) -> None:
        self._package.finish()


class _Mlflow:
    def __init__(self, package: Any, project: str, path: Path, config: Mapping[str, Any]) -> None:
        self._package = package
        package.set_experiment(project)
        stored = _stored_run(path, "mlflow")
        try:
            run = package.start_run(run_id=stored, run_name=path.name)
        except package.MlflowException as error:
            if stored is None:
                raise
            log.warning("mlflow: the run %s is not there (%s); a new one is started", stored, error)
            run = package.start_run(run_name=path.name)
        _store_run(path, "mlflow", run.info.run_id)
        package.log_dict(config, "config.yaml")

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        numbers = {k: v for k, v in metrics.items() if isinstance(v, (int, float))}
        self._package.log_metrics(numbers, step=step)

    def close(self) -> None:
        self._package.end_run()


def _stored_run(path: Path, tracker: str) -> str | None:
    """The tracker's id of the run in this folder, which a resumed run continues."""
    return read_object(path / FILE).get(tracker)


def _store_run(path: Path, tracker: str, run: str) -> None:
    runs = {**read_object(path / FILE), tracker: run}
    write_atomic(path / FILE, json.dumps(runs, indent=1).encode())


class _Tensorboard:
    def __init__(self, package: Any, project: str, path: Path, config: Mapping[str, Any]) -> None:
        self._writer = package.SummaryWriter(str(path / "tensorboard"))

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        for name, value in metrics.items():
            if isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


_TRACKERS: dict[str, tuple[str, Any]] = {
    "wandb": ("wandb", _WandbLike),
    "trackio": ("trackio", _WandbLike),
    "mlflow": ("mlflow", _Mlflow),
    "tensorboard": ("torch.utils.tensorboard", _Tensorboard),
}


def make_tracker(name: str, project: str, path: Path, config: Mapping[str, Any]) -> Tracker:
    """The tracker called ``name``: "none", "wandb", "trackio", "tensorboard" or "mlflow".

    Raises:
        ConfigError: another name, or the package is not installed.
    """
    if name == "none":
        return _Nowhere()
    if name not in _TRACKERS:
        names = ", ".join(["none", *_TRACKERS])
        raise ConfigError(f"tracker: {name!r} is unknown; choose one of {names}")
    module, kind = _TRACKERS[name]
    try:
        package = importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"tracker: {name} is not installed; run: pip install 'trimtab[{name}]'"
        ) from error
    return kind(package, project, path, config)
