"""Starting the processes of a stage on this machine, by torch's own launcher."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from trimtab.config import Config
from trimtab.errors import UserError
from trimtab.runs.launch_spec import LaunchSpec


class LaunchError(UserError):
    """The processes of a stage failed more often than they may be started again."""


def start(name: str, config: Config, spec: LaunchSpec) -> None:
    """Start ``spec.trainers`` processes of ``trimtab NAME`` and wait until they end.

    Args:
        name: The command.
        config: Its configuration, whose output folder is prepared.
        spec: The number of processes and of restarts.

    Raises:
        LaunchError: they failed, also after ``spec.restarts`` restarts.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Every process would otherwise use every core; torchrun's own default is one thread each.
    threads = max(1, (os.cpu_count() or 1) // spec.trainers)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    values: dict[str, Any] = config.model_dump(mode="json", by_alias=True)
    with tempfile.TemporaryDirectory(prefix="trimtab-launch-") as folder:
        # Only the user may read the folder: a configuration can hold keys of services.
        file = Path(folder) / f"{name}.yaml"
        file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        launch = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=spec.trainers,
            run_id=Path(folder).name,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=spec.restarts,
        )
        try:
            elastic_launch(launch, sys.executable)("-m", "trimtab", name, str(file))
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            raise LaunchError(
                f"rank {rank} failed with exit code {failure.exitcode} after {spec.restarts} restarts; "
                "its message is above. Run the same command again to resume from the last checkpoint"
            ) from None
        except SignalException as error:
            # The ranks have finished their step and saved.
            raise SystemExit(128 + int(error.sigval)) from None
