"""Independent jobs as tasks on a Ray cluster."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trimtab.errors import ConfigError, UserError

if TYPE_CHECKING:
    from types import ModuleType

log = logging.getLogger(__name__)
TRIES = 2
"""A failed job is started once more."""


@dataclass(frozen=True, slots=True)
class Job:
    """A call that a worker makes."""

    name: str
    """For messages: "prompts 64 to 127"."""
    work: Callable[..., Any]
    """A function at the top of a module. It is called in the current folder of this process, which all
    machines of the cluster must share if the job reads or writes files."""
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Resources:
    """What each job takes."""

    threads: int = 1
    """CPU cores, and threads of numerical libraries."""
    gpus: float = 0.0
    workers: int = 0
    """Jobs at once; 0 takes as many as the cluster has room for."""
    fresh: bool = False
    """A new process for each job, which costs a few seconds; otherwise a process may run several."""


@dataclass(slots=True)
class _Attempt:
    """A job in work."""

    index: int
    number: int
    node: str = ""
    """Id of the node that runs it, once it has started there."""


@contextmanager
def ray_session(
    show_workers: bool = False, hook: Callable[[], None] | None = None
) -> Generator[ModuleType]:
    """A connection to the cluster of RAY_ADDRESS, or to Ray on this machine, started for the block.

    One that is open already is used, and left open.

    Args:
        show_workers: Print what the workers of a cluster print.
        hook: A function at the top of a module that each process of a cluster calls when it starts. Ray
            ignores hooks of tasks and actors; only a session has one.
    """
    import ray

    if ray.is_initialized():
        yield ray
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        named = f"{hook.__module__}.{hook.__qualname__}" if hook else ""
        ray.init(
            address=address,
            logging_level=logging.ERROR,
            log_to_driver=show_workers,
            runtime_env={"worker_process_setup_hook": named} if named else None,
        )
    else:
        # Results are small: the object store needs little of the memory that the jobs want. Without a
        # dashboard, Ray Train's own helpers would fill the output with warnings.
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=100 << 20,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    try:
        yield ray
    finally:
        ray.shutdown()


def run_jobs(
    jobs: Sequence[Job],
    resources: Resources,
    on_done: Callable[[int, Any], None] | None = None,
) -> dict[int, str]:
    """Run every job on the cluster. A failed one is started once more, on another node if there is one.

    Args:
        on_done: Called with a job's index and its result, in the order in which jobs end.

    Returns:
        Why a job failed both times, by its index; empty if all succeeded.

    Raises:
        ConfigError: no node of the cluster has what a job takes.
    """
    failures: dict[int, str] = {}
    waiting = deque(_Attempt(i, 1) for i in range(len(jobs)))
    running: dict[Any, _Attempt] = {}
    with ray_session() as ray:
        _require_room(ray, resources)
        task = ray.remote(
            num_returns="streaming", max_retries=0, max_calls=1 if resources.fresh else 0
        )(_work)
        env = {"OMP_NUM_THREADS": str(resources.threads), "TOKENIZERS_PARALLELISM": "false"}
        options: dict[str, Any] = {
            "num_cpus": resources.threads,
            "num_gpus": resources.gpus,
            "scheduling_strategy": "SPREAD",
            "runtime_env": {"env_vars": env},
        }
        try:
            while waiting or running:
                while waiting and len(running) < (resources.workers or len(jobs)):
                    attempt = waiting.popleft()
                    job = jobs[attempt.index]
                    elsewhere = _avoid(ray, attempt.node)
                    call = task.options(**options, **elsewhere)
                    attempt.node = ""
                    running[call.remote(os.getcwd(), job.work, job.arguments)] = attempt
                (stream, *_), _ = ray.wait(list(running), num_returns=1)
                attempt = running[stream]
                try:
                    value = ray.get(next(stream))
                    if not attempt.node:
                        attempt.node = value
                        continue
                    if on_done is not None:
                        on_done(attempt.index, value)
                except (ray.exceptions.RayError, StopIteration) as error:
                    why = _reason(error)
                    if attempt.number < TRIES:
                        log.warning("%s failed: %s; trying again", jobs[attempt.index].name, why)
                        waiting.append(_Attempt(attempt.index, attempt.number + 1, attempt.node))
                    else:
                        failures[attempt.index] = why
                del running[stream]
        finally:
            for stream in running:
                ray.cancel(stream, force=True)
    return failures


def _work(
    folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> Generator[Any, None, None]:
    """On the worker: the id of its node, then the result."""
    import ray

    yield ray.get_runtime_context().get_node_id()
    try:
        os.chdir(folder)
    except OSError as error:
        raise ConfigError(
            f"{folder}: this folder cannot be entered on a node of the cluster ({error.strerror}); "
            "start the command in a folder that all nodes share"
        ) from None
    yield work(*arguments)


def _avoid(ray: ModuleType, node: str) -> dict[str, Any]:
    """Options that keep a task away from a node, as long as another one is alive."""
    others = [n for n in ray.nodes() if n["Alive"] and n["NodeID"] != node] if node else []
    return {"label_selector": {"ray.io/node-id": f"!{node}"}} if others else {}


def _reason(error: BaseException) -> str:
    """What went wrong, in one line for a mistake of the user's."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, UserError):
        return str(cause)
    return f"{type(cause).__name__}: {cause}".strip().rstrip(":")


def _require_room(ray: ModuleType, resources: Resources) -> None:
    nodes: list[dict[str, float]] = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    wanted = {"CPU": float(resources.threads), "GPU": resources.gpus}
    if any(all(n.get(k, 0.0) >= v for k, v in wanted.items()) for n in nodes):
        return
    offers = "; ".join(f"{n.get('CPU', 0):g} CPU, {n.get('GPU', 0):g} GPU" for n in nodes)
    raise ConfigError(
        f"launch: a job takes {resources.threads} CPU cores and {resources.gpus:g} GPUs, but no node of "
        f"the cluster has so many (nodes: {offers}); lower threads or launch.gpus"
    )
