"""``trimtab evaluate`` ranks models by the logs of Inspect."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.neighbours import program
from trimtab.config import build
from trimtab.evaluate.leaderboard import EvaluateConfig, measure

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_a_leaderboard_from_logs(tmp_path: Path) -> None:
    inspect = program("Inspect", "inspect", "inspect-ai")
    files = inspect.client("inspect_task", tmp_path)
    options = {"files": files, "baseline": "mockllm/poor", "annotators": ["includes"]}
    board = measure(build(EvaluateConfig, options))
    standing = board.against_baseline["mockllm/good"]
    inspect.report(
        "logs (JSON) of two models on a task of four samples, read by `trimtab evaluate`",
        f"win rate {standing.win_rate.value:.3f} by scorer `includes`",
    )
    assert (standing.wins, standing.ties, standing.losses) == (2, 2, 0)
    assert standing.win_rate.value == 0.75
