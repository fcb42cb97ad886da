"""Outside places for metrics, imported only when asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from trimtab.errors import ConfigError


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
        package.init(project=project, name=path.name, config=config)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._package.log({k: v for k, v in metrics.items() if v is not None}, step=step)

    def close(self) -> None:
        self._package.finish()


class _Mlflow:
    def __init__(self, package: Any, project: str, path: Path, config: Mapping[str, Any]) -> None:
        self._package = package
        package.set_experiment(project)
        package.start_run(run_name=path.name)
        package.log_dict(config, "config.yaml")

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        numbers = {k: v for k, v in metrics.items() if isinstance(v, (int, float))}
        self._package.log_metrics(numbers, step=step)

    def close(self) -> None:
        self._package.end_run()


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
