"""Starting the processes of a training stage on a Ray cluster, by Ray Train."""

from __future__ import annotations

import logging
import os
import secrets
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.config import Config
from trimtab.launch.spmd import run_stage
from trimtab.launch.torchrun import LaunchError
from trimtab.rollout.engines.server_process import require_gpus
from trimtab.runs.node_interface import use_node_interface
from trimtab.runs.ray_jobs import ray_session
from trimtab.terminal_text import SafeFormatter

if TYPE_CHECKING:
    from trimtab.runs.launch_spec import LaunchSpec

log = logging.getLogger(__name__)
_PASSED = (
    "GLOO_SOCKET_IFNAME",
    "NCCL_SOCKET_IFNAME",
    "OMP_NUM_THREADS",
    "HF_HUB_OFFLINE",
    "HF_HOME",
)
"""Variables that workers get from this process; the rest of its environment does not reach them."""


def start_on_ray(name: str, config: Config, spec: LaunchSpec) -> None:
    """Start ``spec.trainers`` workers that run ``trimtab NAME`` together, and wait until they end.

    A worker that fails, or whose node is lost, makes all of them start again from the last checkpoint.
    The run folder must be on a disk that every node of the cluster has at the same path.

    Args:
        name: The command.
        config: Its configuration, whose output folder is prepared.
        spec: The number of workers, of those that are enough, and of restarts.

    Raises:
        ConfigError: the cluster has fewer GPUs than workers and servers need.
        LaunchError: they failed more often than they may be started again.
    """
    elastic = spec.min_trainers is not None and spec.min_trainers < spec.trainers
    # A minute, Ray's default, is short for importing torch from a shared disk on many nodes. A lost node that
    # Ray still counts holds fewer workers back for this time.
    limit = "120" if elastic else "600"
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", limit)
    with ray_session(show_workers=True, hook=use_node_interface) as ray:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
        from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

        from trimtab.launch.lost_nodes import WaitForLostNodes, alive

        resources: dict[str, float] = ray.cluster_resources()
        _require_room(config, spec, int(resources.get("GPU", 0)))
        has_gpus = resources.get("GPU", 0.0) >= spec.trainers
        threads = max(1, int(resources.get("CPU", 1.0)) // spec.trainers)
        env = {"OMP_NUM_THREADS": str(threads), "RAY_TRAIN_V2_ENABLED": "1"}
        env |= {k: os.environ[k] for k in _PASSED if k in os.environ}
        workers: Any = (spec.min_trainers, spec.trainers) if elastic else spec.trainers
        with tempfile.TemporaryDirectory(prefix="trimtab-ray-") as local:
            # Checkpoints are in the run folder; Ray's own records need a place all the same, and one
            # that every node sees where there is more than one node.
            several = len(alive()) > 1
            out: str = getattr(config, "out", local)
            records = str(Path(out).absolute() / "ray") if several else local
            left = spec.restarts
            while True:
                trainer = TorchTrainer(
                    _train_worker,
                    train_loop_config={
                        "folder": os.getcwd(),
                        "name": name,
                        "values": config.model_dump(mode="json", by_alias=True),
                    },
                    scaling_config=ScalingConfig(
                        num_workers=workers, use_gpu=has_gpus, resources_per_worker=None
                    ),
                    torch_config=TorchConfig(
                        backend="cpu:gloo,cuda:nccl" if has_gpus else "gloo",
                        timeout_s=int(spec.timeout),
                    ),
                    run_config=RunConfig(
                        # A new name: Ray resumes its own records of an old one.
                        name=f"{name}-{secrets.token_hex(4)}",
                        storage_path=records,
                        failure_config=FailureConfig(max_failures=left),
                        callbacks=[WaitForLostNodes(alive())],
                        worker_runtime_env={"env_vars": env},
                    ),
                )
                try:
                    trainer.fit()
                    log.info("%s: trained by %d ranks -> %s", name, spec.trainers, out)
                    return
                except WorkerGroupError as error:
                    rank, failure = next(iter(sorted(error.worker_failures.items())), (0, error))
                    raise LaunchError(
                        f"rank {rank} failed after {left} restarts: {_first_line(failure)}. Run the same "
                        "command again to resume from the last checkpoint"
                    ) from None
                except ControllerError as error:
                    # Also a worker that dies while the processes meet; Ray does not start these again.
                    if left == 0:
                        raise LaunchError(
                            f"the workers could not be started: {_first_line(error.controller_failure)}; "
                            f"after {spec.restarts} restarts. Look at the cluster with `ray status`"
                        ) from None
                    left -= 1
                    log.warning(
                        "the workers could not be started, trying again: %s",
                        _first_line(error.controller_failure),
                    )


def _require_room(config: Config, spec: LaunchSpec, gpus: int) -> None:
    """Check that ranks and servers have GPUs of their own, before a worker is started."""
    rollout = getattr(config, "rollout", None)
    if rollout is not None and rollout.servers:
        each = rollout.gpus_per_server
        require_gpus(rollout.servers, each, spec.trainers, gpus, "the cluster")


def _train_worker(values: Mapping[str, Any]) -> None:
    """On each worker of the cluster: one rank of the stage."""
    try:
        os.chdir(values["folder"])
    except OSError as error:
        raise LaunchError(
            f"{values['folder']}: this folder cannot be entered on a node of the cluster "
            f"({error.strerror}); start the command in a folder that all nodes share"
        ) from None
    package = logging.getLogger("trimtab")
    if not package.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(SafeFormatter("%(message)s"))
        package.addHandler(handler)
        package.setLevel(logging.INFO)
    run_stage(values["name"], values["values"])


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else ''}".rstrip(": ")
