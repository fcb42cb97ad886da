"""Memory that runs out at any pack of a step: packs are cut smaller, and the update is the same.

The failure is a real one: the k-th forward asks the allocator for more than there is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import folders, processing
from trimtab.config import build
from trimtab.data.pack import Output, Pack
from trimtab.launch.commands import find_command
from trimtab.train.gradients import Gradients, Part

pytestmark = pytest.mark.slow

LIMIT = 1e-6
METHODS = ("sft", "reward", "process", "dpo", "kto", "online-dpo", "ppo", "grpo")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    folders.model_folder(folder / "model")
    folders.demonstrations(folder / "demos.jsonl")
    folders.comparisons(folder / "pairs.jsonl")
    folders.prompts(folder / "prompts.jsonl")
    processing.write_steps(folder / "steps.jsonl")
    return folder


def stage_of(method: str, base: Path, out: Path) -> Any:
    """A stage whose step takes several packs."""
    data = {"sft": "demos", "reward": "pairs", "dpo": "pairs", "kto": "pairs", "process": "steps"}
    command = find_command(method)
    values: dict[str, Any] = {
        "out": str(out), "model": {"path": str(base / "model"), "device": "cpu"},
        "data": {"path": str(base / f"{data.get(method, 'prompts')}.jsonl")}, "batch_size": 24,
        "optim": {"warmup_ratio": 0.0}, "loop": {"token_budget": 80},
    }  # fmt: skip
    if method == "process":
        values["separator"] = "."
    if method in ("ppo", "grpo", "online-dpo"):
        judge = {"name": "j", "judge": "tests.support.folders:wordier"}
        values |= {
            "steps": 4, "batch_size": 8, "sampling": {"max_new_tokens": 8},
            "rewards": [judge if method == "online-dpo" else folders.WORDY],
        }  # fmt: skip
    out.mkdir(parents=True)
    return command.load_stage()(build(command.load_config(), command.with_preset(values)))


class Allocator:
    """Counts the forwards of a stage's updates and fails the k-th of them once."""

    def __init__(self, stage: Any, k: int) -> None:
        self.k, self.count, self.update = k, 0, stage.trainer.update
        stage.trainer.update = self.train

    def train(self, parts: Sequence[Part]) -> dict[str, float]:
        return self.update([replace(p, forward=self.limited(p.forward)) for p in parts])

    def limited(self, forward: Any) -> Any:
        def run(pack: Pack) -> Output:
            self.count += 1
            out = forward(pack)
            if self.count == self.k:
                torch.empty(1 << 62, dtype=torch.uint8)
            return out

        return run


def weights_after(method: str, base: Path, out: Path, k: int) -> tuple[torch.Tensor, int, Any]:
    """All trained weights after one step whose k-th forward fails, the forwards, and the stage."""
    stage = stage_of(method, base, out)
    allocator = Allocator(stage, k)
    stage.step(0)
    flat = [p.detach().flatten().double() for ps in stage.trainer.params.values() for _, p in ps]
    stage.close()
    return torch.cat(flat), allocator.count, stage


def largest_difference(method: str, base: Path, tmp_path: Path, most: int = 6) -> tuple[float, int]:
    """Over every failing pack, or ``most`` of them evenly spread: the largest change of a weight."""
    undisturbed, forwards, stage = weights_after(method, base, tmp_path / "0", 0)
    assert forwards > 2, "one pack: nothing to fail between"
    budget = stage.trainer.budget
    worst = 0.0
    places = np.unique(np.linspace(1, forwards, min(most, forwards)).astype(int)).tolist()
    for k in places:
        weights, count, stage = weights_after(method, base, tmp_path / str(k), k)
        assert count > forwards and stage.trainer.budget < budget, "nothing was tried again"
        worst = max(worst, float((weights - undisturbed).abs().max()))
    return worst, len(places)


@pytest.mark.parametrize("method", METHODS)
def test_the_update_is_the_same(
    method: str, base: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    worst, places = largest_difference(method, base, tmp_path)
    record_property("largest difference", worst)
    record_property("failing packs", places)
    assert worst <= LIMIT


def test_gradients_that_are_not_cleared_are_noticed(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check can fail: what the packs before the failure left behind changes the update."""
    clear = Gradients._clear

    def once(self: Gradients) -> None:
        if all(p.grad is None for p in self.parameters) or not hasattr(self, "failed"):
            clear(self)
            self.failed = True  # type: ignore[attr-defined]

    monkeypatch.setattr(Gradients, "_clear", once)
    worst, _ = largest_difference("sft", base, tmp_path)
    assert worst > LIMIT
