"""One small Ray on this machine for each module that asks for it: starting it takes seconds."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

JUDGE_KEY = "key-of-the-tests"
"""Workers have the environment of the time when Ray started."""
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        # Workers import this checkout's package and the tests' functions.
        paths = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(p for p in paths if p))
        patch.setenv("JUDGE_TEST_KEY", JUDGE_KEY)
        # It helps where clouds take nodes away; here it is one more process to start.
        patch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # Ray gives workers the lowest priority but four; the machine may be busy.
        patch.setenv("RAY_worker_niceness", "0")
        _start(ray)
        try:
            yield
        finally:
            ray.shutdown()


def _start(ray: Any, tries: int = 3) -> None:
    """Start Ray; its limit of 30 s is fixed, and a busy machine can take longer."""
    for attempt in range(1, tries + 1):
        try:
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                object_store_memory=80 << 20,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
            return
        except Exception as error:  # Ray raises no class of its own
            ray.shutdown()
            if attempt == tries or "timed out during startup" not in str(error):
                raise
