"""Runs without a reference still record how far the policy went from its start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.support import folders
from trimtab.config import build
from trimtab.train.rl import RLConfig, main


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_samples_are_scored_under_the_start_model(
    lora: dict[str, Any] | None, tmp_path: Path
) -> None:
    folders.prompts(tmp_path / "prompts.jsonl")
    folders.model_folder(tmp_path / "model")
    config = {
        "model": {"path": str(tmp_path / "model"), "device": "cpu", "lora": lora},
        "data": {"path": str(tmp_path / "prompts.jsonl")},
        "rewards": [{"name": "w", "function": "tests.support.folders:wordy"}],
        "method": {"type": "grpo", "group_size": 4, "kl": {"beta": 0.0}},
        "sampling": {"max_new_tokens": 8},
        "optim": {"lr": 1e-2, "warmup_ratio": 0.0},
        "batch_size": 4,
        "steps": 4,
        "out": str(tmp_path / "run"),
    }
    main(build(RLConfig, config))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert all("objective/kl" not in r for r in rows)
    # On-policy at first: the policy that sampled is the start model.
    assert rows[0]["kl/start"] == pytest.approx(0.0, abs=1e-4)
    assert abs(rows[-1]["kl/start"]) > 0.01
    tables = sorted((tmp_path / "run" / "samples").glob("*.parquet"))
    assert len(tables) == 4, "about 40 tables per run by default"
    assert all(r["nll_reference"] > 0 for t in tables for r in pq.read_table(t).to_pylist())
