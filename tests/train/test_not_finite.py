"""A loss that is NaN or infinite: the step is skipped, the weights stay, and after some the run stops."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support import folders
from trimtab.config import build
from trimtab.data.pack import Output, Pack
from trimtab.launch.commands import find_command
from trimtab.train import trainer
from trimtab.train.gradients import Part
from trimtab.train.loop import open_run, train
from trimtab.train.trainer import NonFiniteError

pytestmark = pytest.mark.slow

METHODS = ("sft", "reward", "dpo", "grpo")
VALUES = (math.nan, math.inf, -math.inf)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    folders.model_folder(folder / "model")
    folders.demonstrations(folder / "demos.jsonl")
    folders.comparisons(folder / "pairs.jsonl")
    folders.prompts(folder / "prompts.jsonl")
    return folder


def stage_of(method: str, base: Path, out: Path) -> Any:
    data = {"sft": "demos", "reward": "pairs", "dpo": "pairs", "grpo": "prompts"}[method]
    command = find_command(method)
    values: dict[str, Any] = {
        "out": str(out), "model": {"path": str(base / "model"), "device": "cpu"},
        "data": {"path": str(base / f"{data}.jsonl")}, "batch_size": 8, "optim": {"lr": 1e-2},
        "loop": {"token_budget": 512, "max_skips": 2},
    }  # fmt: skip
    if method == "grpo":
        values |= {"steps": 4, "sampling": {"max_new_tokens": 6}, "rewards": [folders.WORDY]}
    out.mkdir(parents=True, exist_ok=True)
    return command.load_stage()(build(command.load_config(), command.with_preset(values)))


def spoil(stage: Any, value: float, first: int, last: int) -> None:
    """Multiply what the loss reads by ``value`` in the updates from ``first`` to ``last``."""
    update, count = stage.trainer.update, 0

    def spoiled(forward: Callable[[Pack], Output]) -> Callable[[Pack], Output]:
        def run(pack: Pack) -> Output:
            out = forward(pack)
            names = [n for n in ("logp_C", "score_B") if getattr(out, n) is not None]
            return replace(out, **{n: getattr(out, n) * value for n in names})

        return run

    def counted(parts: Sequence[Part]) -> dict[str, float]:
        nonlocal count
        count += 1
        if first <= count <= last:
            parts = [replace(p, forward=spoiled(p.forward)) for p in parts]
        return update(parts)

    stage.trainer.update = counted


def weights(stage: Any) -> torch.Tensor:
    every = [p.detach().flatten() for named in stage.trainer.params.values() for _, p in named]
    return torch.cat(every).clone()


def steps(stage: Any) -> tuple[bool, bool, float]:
    """Whether the second step left the weights as they were, whether all are finite, and its "skipped"."""
    stage.step(0)
    before = weights(stage)
    skipped = stage.step(1)["skipped"]
    same = torch.equal(weights(stage), before)
    stage.step(2)
    return same, bool(weights(stage).isfinite().all()), skipped


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("method", METHODS)
def test_a_step_that_is_not_finite_is_skipped(
    method: str, value: float, base: Path, tmp_path: Path
) -> None:
    stage = stage_of(method, base, tmp_path)
    spoil(stage, value, 2, 2)
    assert steps(stage) == (True, True, 1.0)


def test_a_step_that_is_not_skipped_is_noticed(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_of("sft", base, tmp_path)
    spoil(stage, math.nan, 2, 2)
    lenient = SimpleNamespace(isfinite=lambda _: True, cos=math.cos, pi=math.pi)
    monkeypatch.setattr(trainer, "math", lenient)
    same, finite, skipped = steps(stage)
    assert (same, finite, skipped) == (False, False, 0.0)


def test_training_stops_with_the_batch(base: Path, tmp_path: Path) -> None:
    stage = stage_of("sft", base, tmp_path)
    spoil(stage, math.nan, 2, 99)
    with (
        open_run(stage.config) as run,
        pytest.raises(NonFiniteError, match="2 optimiser steps in a row"),
    ):
        train(stage, run)
    assert weights(stage).isfinite().all()
    [file] = tmp_path.glob("not-finite-*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert file.name == "not-finite-00000003.jsonl"
    assert [r["prompt_id"] for r in rows] == [g.id for g in stage.batch(2)]
    assert [r["ids"] for r in rows] == [
        c.ids.tolist() for g in stage.batch(2) for c in g.completions
    ]
