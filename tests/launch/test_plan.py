"""`--plan`: what a run will need, measured beforehand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support import folders
from trimtab.cli.main import main
from trimtab.runs import Run, read_metrics
from trimtab.train.loop import fit
from trimtab.train.sft import SFTConfig, SFTStage


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model and demonstrations."""
    folders.model_folder(tmp_path / "model")
    folders.demonstrations(tmp_path / "demos.jsonl")
    return tmp_path


def trained(base: Path, out: Path, steps: int = 0, **loop: Any) -> bytes:
    config = SFTConfig.model_validate(
        {"model": {"path": str(base / "model"), "device": "cpu"}, "out": str(out), "batch_size": 8,
         "data": {"path": str(base / "demos.jsonl")}, "loop": {"save_steps": 1, **loop}}
    )  # fmt: skip
    stage = SFTStage(config)
    stage.steps = steps or stage.steps
    fit(stage, Run(str(out)), config.loop)
    return (out / "model" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_lowered_token_budget_outlives_a_restart(base: Path) -> None:
    # A step that ran out of memory lowered the budget; a restart cuts its packs in the same way,
    # because the order of floating-point sums depends on the cut.
    uninterrupted = trained(base, base / "a", token_budget=64)
    trained(base, base / "b", 2, token_budget=64)
    assert trained(base, base / "b", token_budget=2048) == uninterrupted
    assert trained(base, base / "c", token_budget=2048) != uninterrupted


def test_a_plan_says_what_the_run_then_takes(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = base / "run"
    arguments = [
        "sft", "--model.path", str(base / "model"), "--model.device", "cpu",
        "--data.path", str(base / "demos.jsonl"), "--batch_size", "8", "--out", str(out),
    ]  # fmt: skip
    main([*arguments, "--plan"])
    output = capsys.readouterr().out
    assert not out.exists(), "a plan leaves nothing behind"
    steps = int(re.findall(r"([\d,]+) steps", output)[0].replace(",", ""))
    assert re.search(r"per step +[\d.e-]+ s, [\d,]+ tokens", output)
    assert re.search(r"memory +[\d,]+ MB", output)
    main(arguments)
    rows = read_metrics(out)
    assert len(rows) == steps
    before = (out / "model" / "model.safetensors").read_bytes()
    capsys.readouterr()
    main([*arguments, "--plan"])
    assert (out / "model" / "model.safetensors").read_bytes() == before
    assert len(read_metrics(out)) == steps


def test_a_plan_of_rl_and_of_what_does_not_train(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders.prompts(base / "prompts.jsonl")
    config = base / "rl.yaml"
    config.write_text(
        json.dumps(
            {"model": {"path": str(base / "model"), "device": "cpu"}, "out": str(base / "x"),
             "data": {"path": str(base / "prompts.jsonl")}, "steps": 40, "batch_size": 4,
             "sampling": {"max_new_tokens": 8}, "method": {"type": "ppo"},
             "rewards": [{"name": "wordy", "function": f"{Path(folders.__file__)}:wordy"}]}
        )
    )  # fmt: skip
    main(["rl", str(config), "--plan"])
    assert "40 steps" in capsys.readouterr().out
    assert not (base / "x").exists()
    with pytest.raises(SystemExit):
        main(["judge", "x.jsonl", "--plan"])
    assert "trains nothing" in capsys.readouterr().err
