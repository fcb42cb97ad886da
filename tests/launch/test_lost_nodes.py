"""How long a restart on Ray is held back after a worker failed."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("ray", reason="the extra cluster is not installed")

from ray.exceptions import ActorUnavailableError

from trimtab.launch import lost_nodes

UNAVAILABLE = ActorUnavailableError("no connection", b"0" * 16)
LOST = 25.0
"""Seconds after which Ray knows that node b is lost."""


class FailedError(Exception):
    """As Ray Train reports a worker that does not answer."""

    health_check_failure = UNAVAILABLE


@pytest.mark.parametrize(
    ("error", "lost_after", "waited"),
    [
        (FailedError(), LOST, LOST + lost_nodes.REFRESHED),
        (FailedError(), None, lost_nodes.NOTICED),
        (ValueError("a bug"), None, 0.0),
        (ValueError("its peer is gone"), 0.0, lost_nodes.REFRESHED),
    ],
    ids=["lost", "link", "error", "known"],
)
def test_a_restart_waits_for_lost_nodes_alone(
    error: Exception, lost_after: float | None, waited: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    def nodes() -> list[dict[str, Any]]:
        is_lost = lost_after is not None and clock[0] >= lost_after
        return [{"NodeID": "a", "Alive": True}, {"NodeID": "b", "Alive": not is_lost}]

    monkeypatch.setattr(lost_nodes.time, "sleep", sleep)
    monkeypatch.setattr(lost_nodes.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(lost_nodes.ray, "nodes", nodes)
    callback = lost_nodes.WaitForLostNodes({"a", "b"})
    callback.after_exception(None, {1: error})
    assert clock[0] == pytest.approx(waited, abs=0.5)
    callback.after_exception(None, {0: ValueError("another bug")})
    assert clock[0] == pytest.approx(waited, abs=0.5), "it waits again for a node that is gone"
