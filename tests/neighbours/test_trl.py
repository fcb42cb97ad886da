"""TRL trains folders that trimtab exported, and trimtab those that TRL saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trimtab as tt
from tests.neighbours.conftest import Exported
from tests.support.foreign import own_accuracy, own_logps
from tests.support.neighbours import Program, program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def trl() -> Program:
    return program("TRL", "trl", "trl")


@pytest.fixture(scope="module")
def trained(trl: Program, exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """TRL's accuracies, and the folder of what it trained."""
    out = tmp_path_factory.mktemp("trl")
    files = (exported.policy, exported.reward, exported.pairs, exported.held_out, out)
    return trl.client("trl_trainers", *files, timeout=3000), out


def test_reward_models_have_one_accuracy_here_and_there(
    trl: Program, exported: Exported, trained: Any, tmp_path: Path
) -> None:
    theirs, out = trained
    ours = {
        "exported": own_accuracy(exported.reward, exported.held_out, tmp_path / "a"),
        "own": own_accuracy(out / "reward", exported.held_out, tmp_path / "b"),
    }
    for name, what in (("exported", "exported by trimtab"), ("own", "trained by TRL")):
        trl.report(
            f"accuracy of a reward model {what}, RewardTrainer",
            f"{theirs[name]:.3f}; `trimtab accuracy` {ours[name]:.3f}",
        )
    assert theirs == pytest.approx(ours, abs=1e-6)


def test_log_probs_are_equal_in_both_directions(
    trl: Program, exported: Exported, trained: Any, tmp_path: Path
) -> None:
    names = ("sft", "sft_lora", "dpo", "grpo")
    folders = [exported.policy, *(trained[1] / name for name in names)]
    rows = tmp_path / "rows.json"
    ours = {str(f): own_logps(f, exported.held_out, rows) for f in folders}
    task = {"folders": list(ours), "rows": json.loads(rows.read_text())}
    (tmp_path / "task.json").write_text(json.dumps(task))
    theirs = trl.client("logps", tmp_path / "task.json")
    error = {f: float(np.abs(np.array(theirs[f]) - ours[f]).max()) for f in ours}
    trl.report(
        "SFTTrainer (full and LoRA adapter), DPOTrainer and GRPOTrainer start from an exported policy; "
        f"trimtab reads what they save; log-probs of {len(task['rows'])} completions",
        f"differ by at most {max(error.values()):.1e} nats",
    )
    assert max(error.values()) < 1e-3, error
    assert len({round(float(v.sum()), 3) for v in ours.values()}) == len(ours)  # each was trained


def test_trimtab_trains_an_adapter_of_trl(exported: Exported, trained: Any, tmp_path: Path) -> None:
    model = {"path": str(trained[1] / "sft_lora"), "device": "cpu"}
    run = tt.dpo(model=model, data={"path": str(exported.pairs), "limit": 64}, out=tmp_path / "dpo")
    assert np.isfinite(run.metrics["loss"]).all()
