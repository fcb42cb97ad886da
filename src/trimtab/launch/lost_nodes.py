"""Waiting until Ray knows which nodes of its cluster are lost."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError
from ray.train import UserCallback

NOTICED = 60.0
"""Seconds in which Ray notices a lost node: five heartbeats of 3 s, each with a timeout."""
REFRESHED = 22.0
"""Seconds in which the places that Ray reserves for workers follow its nodes; it looks every 20 s."""


class WaitForLostNodes(UserCallback):
    """Holds a restart back until Ray plans it without the nodes that are lost.

    Ray Train sees at once that a worker does not answer; its cluster learns up to half a minute later that
    the node is lost, and its reservations another 20 s later. Workers that are started in between wait for
    that node: for ``RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S``, or without end if their place was reserved.

    Args:
        nodes: Ids of the nodes that are alive at the start.
    """

    def __init__(self, nodes: set[str]) -> None:
        self.nodes = nodes

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Wait if a worker is unavailable or a node is lost; not after other errors of workers."""
        causes = [getattr(e, "health_check_failure", e) for e in worker_exceptions.values()]
        if any(isinstance(cause, ActorUnavailableError) for cause in causes):
            started = time.monotonic()
            while self.nodes <= alive() and time.monotonic() < started + NOTICED:
                time.sleep(0.5)
        if not self.nodes <= alive():
            time.sleep(REFRESHED)
        self.nodes = alive()


def alive() -> set[str]:
    """Ids of the nodes of the cluster that are alive."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
