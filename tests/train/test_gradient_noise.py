"""Noise of a method's gradient at a policy: nothing is trained, and what is known of it comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import folders
from trimtab.cli.main import main as cli
from trimtab.config import build
from trimtab.errors import ConfigError
from trimtab.train import gradient_noise, rl
from trimtab.train.gradient_noise import GradientNoiseConfig, GradientTrainer, main


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("noise")
    folders.model_folder(folder / "model")
    folders.prompts(folder / "prompts.jsonl", 24)
    return folder


def settings(base: Path, out: Path, **more: Any) -> dict[str, Any]:
    return {**folders.rl_settings(base, out), "batches": 4, **more}


def test_a_recorded_gradient_is_that_of_the_update(base: Path, tmp_path: Path) -> None:
    """One batch: the step of plain gradient descent that the trainer would take, without clipping."""
    config = build(rl.RLConfig, folders.rl_settings(base, tmp_path))
    stage = rl.RLStage(config)
    before = [p.detach().clone() for p in stage.lm.model.parameters()]
    stage.trainer = GradientTrainer(
        stage.trainer.modules, stage.trainer.optim, 1, config.loop, "rl"
    )
    stage.trainer.gradients_R = []
    stage.step(0)
    after = list(stage.lm.model.parameters())
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    (recorded,) = stage.trainer.gradients_R
    other = rl.RLStage(config)
    other.trainer.optim["policy"] = other.trainer.optim["policy"].model_copy(
        update={"max_grad_norm": 1e9}
    )
    other.step(0)
    flat = torch.cat([p.grad.flatten() for p in other.lm.model.parameters() if p.grad is not None])
    assert torch.allclose(recorded, flat, atol=1e-6) and recorded.norm() > 0


def test_as_a_command(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    values = settings(base, tmp_path / "o")
    file.write_text(json.dumps(values))
    cli(["gradient-noise", str(file), "--batches", "5"])
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert summary["method"] == "rloo" and summary["completions"] == 8 * 4
    assert summary["batches"] == 5 and summary["noise"] > 0
    assert not (tmp_path / "o" / "model").exists()


def test_a_critic_is_trained_and_the_policy_is_not(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: list[rl.RLStage] = []

    class Kept(rl.RLStage):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.start = {
                name: torch.cat([p.detach().flatten().clone() for p in m.parameters()])
                for name, m in self.trainer.modules.items()
            }
            stages.append(self)

    monkeypatch.setattr(gradient_noise, "RLStage", Kept)
    method = {"type": "ppo", "updates": {"epochs": 4, "minibatches": 2}}
    values = settings(base, tmp_path, method=method, critic_batches=2, batches=3, steps=2)
    main(build(GradientNoiseConfig, values))
    (stage,) = stages
    now = {
        name: torch.cat([p.detach().flatten() for p in m.parameters()])
        for name, m in stage.trainer.modules.items()
    }
    assert torch.equal(now["policy"], stage.start["policy"])
    assert not torch.equal(now["critic"], stage.start["critic"])


def test_critic_batches_need_a_critic(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="critic_batches"):
        build(GradientNoiseConfig, settings(base, tmp_path, critic_batches=1))
