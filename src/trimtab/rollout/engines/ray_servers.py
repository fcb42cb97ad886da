"""vLLM servers on the nodes of a Ray cluster; an actor is the parent of each."""

from __future__ import annotations

import atexit
import logging
import secrets
from pathlib import Path
from typing import Any

from trimtab.rollout.engine import EngineError
from trimtab.rollout.engines.server_process import (
    ServerProcess,
    ServeSpec,
    free_port,
    server_arguments,
    server_environment,
    write_modules,
)

log = logging.getLogger(__name__)


def cluster_gpus() -> int:
    """GPUs of the cluster that this process belongs to."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def node_address() -> str:
    """This node's address in the cluster."""
    import ray

    return ray.util.get_node_ip_address()


class ServerParent:
    """The actor: starts one server on its node, which ends with it."""

    def __init__(self, spec: ServeSpec, key: str, folder: Path, index: int) -> None:
        import ray

        gpus = [int(number) for number in ray.get_gpu_ids()]
        address, port = node_address(), free_port()
        self.process = ServerProcess(
            server_arguments(spec, port, address),
            server_environment(key, gpus, write_modules(folder / "modules", spec.backend)),
            port,
            folder / f"server-{index}.log",
            address=address,
            ends_with_parent=True,
        )

    def start(self) -> str:
        """Start it; its address once it answers."""
        self.process.start()
        self.process.wait()
        return self.process.url

    def watch(self) -> None:
        """Start it again if it ended."""
        self.process.start_again()

    def stop(self) -> None:
        """End it."""
        self.process.stop()


class RayServers:
    """Servers that Ray places; those of a node that is lost stay away, and the others serve.

    They listen on the address of their node in the cluster; every route asks for the key, but there is no TLS.

    Args:
        spec: How each is started.
        count: Number of servers.
        folder: For their logs and modules, on a disk that all nodes share.

    Raises:
        EngineError: a server did not start.
    """

    def __init__(self, spec: ServeSpec, count: int, folder: Path) -> None:
        import ray
        from ray.exceptions import RayError, RayTaskError

        self.key = secrets.token_urlsafe(24)
        """Of every route."""
        self._ray: Any = ray
        # Ranks have all CPUs of the cluster; a server waits for a GPU, if for anything.
        actor: Any = ray.remote(num_cpus=0, num_gpus=spec.gpus, scheduling_strategy="SPREAD")(
            ServerParent
        )
        arguments = (spec, self.key, folder.resolve())
        self._actors = [actor.remote(*arguments, i) for i in range(count)]
        atexit.register(self.stop)
        try:
            self.urls: list[str] = ray.get([a.start.remote() for a in self._actors])
        except RayError as error:
            self.stop()
            cause = error.cause if isinstance(error, RayTaskError) else error
            raise EngineError(str(cause)) from None

    def watch(self) -> None:
        """Start servers again that ended; those whose node is gone are left."""
        self._all("watch")

    def stop(self) -> None:
        """End all servers."""
        self._all("stop")
        self._actors = []
        atexit.unregister(self.stop)

    def _all(self, method: str) -> None:
        from ray.exceptions import RayError

        for actor in self._actors:
            try:
                self._ray.get(getattr(actor, method).remote())
            except RayError as error:
                log.warning("rollout: a server's node does not answer (%s)", type(error).__name__)
