"""Faults of one rank of two: memory that runs out, and a loss that is not finite. Rows 11 and 12 of the scorecard."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.scale.equality import EPS, make_data, result, run_rows, settings
from tests.support.scorecard import scorecard_only
from tests.train.test_not_finite import spoil
from tests.train.test_out_of_memory import LIMIT, Allocator
from trimtab import ranks
from trimtab.config import build
from trimtab.launch.commands import find_command
from trimtab.models.shard import full
from trimtab.train import trainer
from trimtab.train.gradients import Gradients

pytestmark = pytest.mark.slow

WORLD = (2,)
METHODS = ("sft", "reward", "dpo", "grpo")
ALL = ("sft", *(pytest.param(m, marks=scorecard_only) for m in METHODS[1:]))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    make_data(folder)
    return folder


def stage_of(row: str, base: Path) -> Any:
    name, values = settings(row, base)
    values["optim"] = {"warmup_ratio": 0.0}
    command = find_command(name)
    stage = command.load_stage()(build(command.load_config(), values))
    for group in stage.trainer.optimizer.param_groups:
        group["eps"] = EPS
    return stage


def weights(stage: Any) -> Tensor:
    """All trained weights, whole, on every rank."""
    every = [full(p).detach() for named in stage.trainer.params.values() for _, p in named]
    return torch.cat([p.reshape(-1).double() for p in every])


# Memory --------------------------------------------------------------------------------------


def short_of_memory(row: str, base: Path, *, k: int, clear: bool = True) -> dict[str, Any] | None:
    """One step; a forward of rank 1 asks for more memory than there is."""
    stage = stage_of(row, base)
    budget, here = stage.trainer.budget, ranks.current()
    if here.rank == 1:
        Allocator(stage, k)
    if not clear:
        Gradients._clear = lambda self: None  # type: ignore[method-assign]
    stage.step(0)
    after = weights(stage)
    lowered = stage.trainer.budget < budget
    return {"weights": after, "lowered": lowered} if here.is_main else None


def change(row: str, base: Path, k: int, **over: bool) -> float:
    """Largest change of a weight when memory runs out at the k-th forward of rank 1."""
    job = functools.partial(short_of_memory, k=0)
    assert run_rows(base, [row], WORLD, job) == [0, 0]
    undisturbed = result(base, row, 2)
    assert not undisturbed["lowered"]
    assert run_rows(base, [row], WORLD, functools.partial(short_of_memory, k=k, **over)) == [0, 0]
    disturbed = result(base, row, 2)
    assert disturbed["lowered"], "nothing was tried again, or rank 0 does not know of it"
    return float((disturbed["weights"] - undisturbed["weights"]).abs().max())


@pytest.mark.parametrize("method", ALL)
def test_one_rank_tries_again_and_the_update_is_the_same(
    method: str, base: Path, record_property: Callable[[str, object], None]
) -> None:
    worst = change(f"{method}.none.whole", base, 1)
    record_property("largest difference", worst)
    assert worst <= LIMIT


def test_what_a_rank_leaves_behind_is_noticed(base: Path) -> None:
    assert change("sft.none.whole", base, 2, clear=False) > LIMIT


def test_sharded_weights_end_with_the_knob_to_turn(
    base: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ranks meet in every pack, so that one cannot try again by itself."""
    job = functools.partial(short_of_memory, k=1)
    codes = run_rows(base, ["sft.full.whole"], WORLD, job, timeout=20)
    assert 0 not in codes
    assert "rank 1: a pack of" in (said := capfd.readouterr().err)
    assert "does not fit into memory; lower loop.token_budget" in said


# Not finite ----------------------------------------------------------------------------------


def not_finite(row: str, base: Path, *, value: float, skip: bool = True) -> dict[str, Any] | None:
    """Three steps; on rank 1 the loss of the second is not finite."""
    stage = stage_of(row, base)
    here = ranks.current()
    if here.rank == 1:
        spoil(stage, value, 2, 2)
    if not skip:
        trainer.math = SimpleNamespace(isfinite=lambda _: True, cos=math.cos, pi=math.pi)  # type: ignore[assignment]
    stage.step(0)
    before = weights(stage)
    skipped = stage.step(1)["skipped"]
    same = torch.equal(weights(stage), before)
    stage.step(2)
    after = weights(stage)
    decisions = here.gather([skipped, same, bool(after.isfinite().all()), float(after.sum())])
    return (
        {"decisions": decisions, "moved": not torch.equal(after, before)} if here.is_main else None
    )


@pytest.mark.parametrize("value", [math.nan, pytest.param(math.inf, marks=scorecard_only)])
@pytest.mark.parametrize(
    "row",
    [
        "sft.full.whole",
        "grpo.none.whole",
        *(pytest.param(f"{m}.none.whole", marks=scorecard_only) for m in METHODS[:3]),
    ],
)
def test_all_ranks_skip_the_step(row: str, value: float, base: Path) -> None:
    job = functools.partial(not_finite, value=value)
    assert run_rows(base, [row], WORLD, job) == [0, 0]
    one, two = result(base, row, 2)["decisions"]
    assert one[:3] == two[:3] == [1.0, True, True]
    assert one[3] == two[3], "the ranks have different weights"
    assert result(base, row, 2)["moved"], "the next step trains again"


def test_ranks_that_do_not_skip_are_noticed(base: Path) -> None:
    job = functools.partial(not_finite, value=math.nan, skip=False)
    assert run_rows(base, ["sft.none.whole"], WORLD, job) == [0, 0]
    for skipped, same, finite, _ in result(base, "sft.none.whole", 2)["decisions"]:
        assert (skipped, same, finite) == (0.0, False, False)
