"""Waiting until Ray knows which nodes of its cluster are lost."""

from __future__ import annotations

import logging
import time
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError
from ray.train import UserCallback

log = logging.getLogger(__name__)
NOTICED = 60.0
"""Seconds in which Ray notices a lost node: five heartbeats of 3 s, each with a timeout."""


class WaitForLostNodes(UserCallback):
    """Holds a restart back while a worker is unavailable and its node counts as alive.

    Ray Train sees at once that a worker does not answer, and its cluster learns half a minute later that
    the node is lost. Workers that are started in between wait for that node: for the whole
    ``RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S``, or without end if their place was reserved.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Wait until a node is lost, at most ``NOTICED`` seconds; not after other errors of workers."""
        causes = [getattr(e, "health_check_failure", e) for e in worker_exceptions.values()]
        if not any(isinstance(cause, ActorUnavailableError) for cause in causes):
            return
        before, started = _alive(), time.monotonic()
        while before <= _alive() and time.monotonic() < started + NOTICED:
            time.sleep(0.5)
        log.info("%d of %d nodes are left", len(before & _alive()), len(before))


def _alive() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
