"""The recipe of direct methods, small: every stage, one reference for all, every promised figure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import trimtab
from tests.support.processes import run_here
from trimtab.runs import read_metrics

pytestmark = pytest.mark.slow

RECIPE = Path(trimtab.__file__).parent / "recipes" / "sandbox-dpo.yaml"
METHODS = ("dpo", "robust", "ipo", "dpo_norm", "simpo", "orpo", "kto")
SMALL = [
    "--world.demonstrations", "96", "--world.prompts", "80", "--world.heldout", "40",
    "--sft.holdout", "16", "--sft.epochs", "1", "--sft.batch_size", "32", "--label.heldout", "16",
    *(x for name in METHODS for x in (f"--{name}.batch_size", "16")),
]  # fmt: skip


def run(out: Path) -> str:
    return run_here("run", str(RECIPE), "--out", str(out), *SMALL)


@pytest.fixture(scope="module")
def complete_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("direct") / "run"
    run(out)
    return out


def test_every_promised_figure_is_there(complete_run: Path) -> None:
    figures = json.loads((complete_run / "summary.json").read_text())
    expected = yaml.safe_load(RECIPE.read_text())["expect"]
    for name in METHODS:
        assert 0 < figures["gold"][name] < 1
        rate = figures["win_rate"][name]
        assert 0 <= rate["low"] <= rate["mean"] <= rate["high"] <= 1
        assert figures["kl"][name] != 0
        assert expected["win_rate"][name]["low"] > 0.5


def test_each_begins_at_the_same_reference(complete_run: Path) -> None:
    """One cache for all; the first step of each is taken where the policy is the reference."""
    caches = list((complete_run / "sft" / "reference").glob("*.safetensors"))
    # Training and held-out answers; for kto also the answers to other prompts, of both.
    assert 4 <= len(caches) <= 8
    for name in ("dpo", "robust", "ipo", "dpo_norm"):
        assert not (complete_run / name / "reference").exists()
        assert abs(read_metrics(complete_run / name)[0]["rewards/margins"]) < 1e-4


def test_a_whole_recipe_is_not_run_again(complete_run: Path) -> None:
    before = {n: (complete_run / n / "model" / "model.safetensors").read_bytes() for n in METHODS}
    output = run(complete_run)
    for name in METHODS:
        assert f"{name}: already complete" in output
        assert (complete_run / name / "model" / "model.safetensors").read_bytes() == before[name]
