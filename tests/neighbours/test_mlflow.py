"""mlflow 3 under our constraints stores the metrics of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

import trimtab as tt
from tests.support.chatml import chatml_model, demonstrations
from tests.support.neighbours import program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_metrics_are_stored(tmp_path: Path) -> None:
    mlflow = program("mlflow", "mlflow", "mlflow-skinny")
    config, tokenizer = chatml_model(tmp_path)
    rows = demonstrations(tmp_path / "rows.jsonl", 64)
    theirs = mlflow.client("mlflow_metrics", config, tokenizer, rows, tmp_path)
    ours = tt.Run(tmp_path / "sft").metrics["loss"]
    mlflow.report(
        "metrics of an SFT run, installed as `trimtab[mlflow]` under `constraints.txt`",
        f"{len(theirs['loss'])} of {len(ours)} steps stored with their loss",
    )
    assert mlflow.version() >= "3"
    assert theirs["runs"] == 1
    assert [step for step, _ in theirs["loss"]] == list(ours.index)
    assert [value for _, value in theirs["loss"]] == pytest.approx(list(ours))
