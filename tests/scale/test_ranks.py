"""Any number of ranks gives the gradients, weights and metrics of one process; faults are noticed.

CI runs a slice; ``make scale-check`` (TRIMTAB_SCALE=all) runs every method, sharded or not, whole or with
adapters, on 1, 2 and 4 ranks. They are real processes that talk by gloo.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.scale.equality import (
    ROWS,
    Trace,
    difference,
    exported,
    make_data,
    metrics_difference,
    result,
    resume,
    run_rows,
    save,
    trace,
)
from trimtab import ranks
from trimtab.models import shard
from trimtab.ranks import Ranks
from trimtab.train import deal, gradients
from trimtab.train.deal import Bin
from trimtab.types import Group

pytestmark = pytest.mark.slow

EVERYTHING = os.environ.get("TRIMTAB_SCALE") == "all"
SLICE = ["sft.none.lora", "reward.full.whole", "ppo.full.lora", "grpo.none.whole"]
EPS_ROW = "dapo.full.whole.eps"
TABLE = [*ROWS, EPS_ROW] if EVERYTHING else SLICE
WORLDS = (1, 2, 4) if EVERYTHING else (1, 2)
GRADIENTS, WEIGHTS, METRICS = 1e-6, 1e-5, 1e-5


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    make_data(folder)
    return folder


@pytest.fixture(scope="module")
def traces(base: Path) -> Path:
    codes = run_rows(base, TABLE, WORLDS)
    assert codes == [0] * max(WORLDS)
    return base


@pytest.mark.parametrize("world", WORLDS[1:])
@pytest.mark.parametrize("row", TABLE)
def test_ranks_train_what_one_process_trains(row: str, world: int, traces: Path) -> None:
    one, several = result(traces, row, 1), result(traces, row, world)
    assert difference(several.gradients, one.gradients) <= GRADIENTS
    assert difference(several.weights, one.weights) <= WEIGHTS
    models = [load_file(exported(traces, row, n) / "model.safetensors") for n in (1, world)]
    assert models[0].keys() == models[1].keys()
    for tensor, other in zip(*(m.values() for m in models), strict=True):
        assert difference(other, tensor) <= 10 * WEIGHTS


MISSED = pytest.mark.xfail(
    strict=True, reason="grad_norm/policy of the last step differs by 1.3e-5"
)
"""Missed by this row alone, and not with a larger eps in Adam (``EPS_ROW``); docs/scale.md says so. It must fail,
so that a repair is noticed."""


@pytest.mark.parametrize("world", WORLDS[1:])
@pytest.mark.parametrize(
    "row", [pytest.param(r, marks=MISSED) if r == "dapo.full.whole" else r for r in TABLE]
)
def test_ranks_report_what_one_process_reports(row: str, world: int, traces: Path) -> None:
    gap, name = metrics_difference(result(traces, row, world), result(traces, row, 1))
    assert gap <= METRICS, name


@pytest.mark.skipif(not EVERYTHING, reason="make scale-check runs it")
@pytest.mark.parametrize("row", ["sft.full.whole", "ppo-shared.full.lora", "dpo.none.whole"])
def test_a_run_resumes_on_another_number_of_ranks(row: str, base: Path, tmp_path: Path) -> None:
    for name in ("model", "demos.jsonl", "pairs.jsonl", "prompts.jsonl"):
        (tmp_path / name).symlink_to(base / name)
    assert run_rows(tmp_path, [row], (2,), trace) == [0, 0]
    undisturbed = result(tmp_path, row, 2).weights
    assert run_rows(tmp_path, [row], (2,), save) == [0, 0]
    method, shard_mode, weights = row.split(".")
    other = f"{method}.{'none' if shard_mode == 'full' else 'full'}.{weights}"
    assert run_rows(tmp_path, [row, other], (1, 2, 4), resume) == [0] * 4
    loaded = result(tmp_path, row, 2)["loaded"]
    for resumed in (row, other):
        for world in (1, 2, 4):
            flat = result(tmp_path, resumed, world)
            assert torch.equal(flat["loaded"], loaded), (resumed, world)
            assert difference(flat["end"], undisturbed) <= GRADIENTS, (resumed, world)


def without_count_sums(row: str, base: Path) -> Trace | None:
    """A rank divides by the counts of its own packs."""
    here = ranks.current()
    reduced = here.sum
    here.sum = lambda values: dict(values) if "tokens" in values else reduced(values)
    return trace(row, base)


def without_divide_factor(row: str, base: Path) -> Trace | None:
    """FSDP2 averages over the ranks, as it does unless it is told otherwise."""
    from torch.distributed.fsdp import FSDPModule

    FSDPModule.set_gradient_divide_factor = lambda *_: None  # pyright: ignore[reportAttributeAccessIssue]
    return trace(row, base)


def with_plans_of_ranks(row: str, base: Path) -> Trace | None:
    """Groups are dealt, and every rank packs its own."""

    def bins_of(groups: Sequence[Group], budget: int, share: bool) -> list[Bin]:
        here = ranks.current()
        return [Bin(groups[here.rank :: here.world], 1.0, 0)]

    gradients.bins_of = bins_of
    return trace(row, base)


def without_idle_packs(row: str, base: Path) -> Any:
    """A rank without a pack runs none, so the layers' collectives do not meet."""
    dealt = deal.deal

    def skip(bins: Sequence[Sequence[Group]], share: bool) -> list[Bin]:
        return [b for b in dealt(bins, share) if b.weight]

    deal.deal = skip
    try:
        return trace(row, base)
    except RuntimeError as error:
        if not ranks.is_lost(error):
            raise
        raise ranks.current().lost(error) from error


MUTANTS = {
    "counts": (without_count_sums, "sft.none.whole"),
    "divide-factor": (without_divide_factor, "sft.full.whole"),
    "own-plans": (with_plans_of_ranks, "sft.none.whole.bf16"),
    "idle": (without_idle_packs, "sft.full.whole"),
}


@pytest.mark.skipif(not EVERYTHING, reason="make scale-check runs it")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_fault_is_noticed(
    mutant: str, base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    job, row = MUTANTS[mutant]
    for name in ("model", "demos.jsonl"):
        (tmp_path / name).symlink_to(base / name)
    assert run_rows(tmp_path, [row], (1, 2)) == [0, 0], "the row without the fault"
    one, two = result(tmp_path, row, 1), result(tmp_path, row, 2)
    assert difference(two.gradients, one.gradients) <= GRADIENTS
    capfd.readouterr()
    codes = run_rows(tmp_path, [row], (2,), job, timeout=20)
    if codes == [0, 0]:
        wrong = result(tmp_path, row, 2)
        # Clipping hides a factor from the gradients, not from their norm.
        gap = metrics_difference(wrong, one)[0]
        assert difference(wrong.gradients, one.gradients) > 10 * GRADIENTS or gap > 10 * METRICS
    else:
        assert mutant == "idle" and "another rank ended or did not answer" in capfd.readouterr().err


def collectives(row: str, base: Path) -> dict[str, Any]:
    """Every method of ``Ranks``."""
    here = ranks.current()
    tensor = torch.full((3,), float(here.rank + 1))
    here.sum_tensor(tensor)
    group = Group("g", torch.arange(3).numpy(), []) if here.is_main else None
    rows = here.gather_arrays([{"a": torch.arange(here.rank).numpy()}] * here.rank)
    return {
        "sum": here.sum({"all": 0.1, f"only{here.rank}": 1.0}),
        "agree": [here.agree(here.rank == here.world - 1), here.agree(False)],
        "minimum": here.minimum(7 - here.rank),
        "gather": here.gather(f"é{here.rank}"),
        "share": here.share(here.rank),
        "tensor": tensor.tolist(),
        "groups": [g.id for g in here.broadcast([group] if group else None)],
        "rows": [[len(r["a"]) for r in part] for part in rows],
    }


def test_collectives(tmp_path: Path) -> None:
    assert run_rows(tmp_path, ["row"], (1, 3), collectives) == [0, 0, 0]
    one, three = result(tmp_path, "row", 1), result(tmp_path, "row", 3)
    assert one["sum"] == {"all": 0.1, "only0": 1.0} and one["gather"] == ["é0"]
    assert three["sum"] == {"all": 0.1 + 0.1 + 0.1, "only0": 1.0, "only1": 1.0, "only2": 1.0}
    assert three["agree"] == [True, False] and three["minimum"] == 5 and three["share"] == 0
    assert three["gather"] == ["é0", "é1", "é2"] and three["tensor"] == [6.0] * 3
    assert three["groups"] == ["g"] and three["rows"] == [[], [1], [2, 2]]


def test_one_process_needs_no_torch_distributed() -> None:
    here = Ranks()
    values = {"a": 0.1}
    assert here.sum(values) == values and here.agree(True) and not here.agree(False)
    assert shard.full(torch.ones(2)).tolist() == [1.0, 1.0]
