"""Default learning rates, and the warning about rates that do not fit the model."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from torch import nn

from tests.support import folders
from trimtab.audit.run_settings import RunSettings
from trimtab.config import build
from trimtab.runs import read_metrics
from trimtab.train.learning_rate import RATES, RateOf, checked_rate, usual_rate
from trimtab.train.sft import SFTConfig, main


def module(parameters: float, lora: bool = False) -> nn.Module:
    """A module with this number of parameters, without memory for them."""
    inner = nn.Linear(1, int(parameters), bias=False, device="meta")
    return nn.ModuleDict({"lora_A": inner} if lora else {"plain": inner})


@pytest.mark.parametrize("of", ["sft", "reward", "preference", "rl"])
def test_larger_models_and_full_training_have_lower_rates(of: RateOf) -> None:
    sizes = (8e5, 1e7, 1.35e8, 1e9, 7e9)
    for lora in (False, True):
        rates = [usual_rate(module(n, lora), of) for n in sizes]
        assert rates == sorted(rates, reverse=True)
        assert rates == list(RATES[of, "lora" if lora else "full"])
    assert all(usual_rate(module(n, True), of) > usual_rate(module(n), of) for n in sizes)


@pytest.mark.parametrize(
    ("lr", "parameters", "lora", "expected"),
    [
        (1e-5, 8e5, False, "change nothing"),
        (1e-3, 1.35e8, False, "destroy the model"),
        (1e-3, 8e5, False, ""),
        (5e-4, 1.35e8, True, ""),
        (2e-5, 1e9, False, ""),
        (2e-4, 7e9, True, ""),
        (2e-6, 7e9, True, "change nothing"),
    ],
)
def test_a_rate_that_does_not_fit_is_warned_about_and_not_changed(
    lr: float, parameters: float, lora: bool, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert checked_rate(lr, module(parameters, lora), "sft", "optim.lr") == lr
    assert (expected in caplog.text) if expected else not caplog.records


def test_a_run_takes_the_default_and_states_it(tmp_path: Path) -> None:
    folders.model_folder(tmp_path / "model")
    folders.demonstrations(tmp_path / "rows.jsonl", 16)
    values = {
        "model": str(tmp_path / "model"), "data": str(tmp_path / "rows.jsonl"), "batch_size": 8,
        "out": str(tmp_path / "run"),
    }  # fmt: skip
    main(build(SFTConfig, values))
    usual = RATES["sft", "full"][0]
    assert read_metrics(tmp_path / "run")[0]["lr/model"] == pytest.approx(usual)
    assert json.loads((tmp_path / "run/facts.json").read_text())["lr"] == {"model": usual}
    assert RunSettings.read(tmp_path / "run").lr == usual


def test_the_documented_table_is_that_of_the_code() -> None:
    page = (Path(__file__).parents[2] / "docs/methods.md").read_text(encoding="utf-8")
    lines = page.partition("## Default learning rates")[2].splitlines()
    cells = [[c.strip() for c in x.strip("|").split("|")] for x in lines if x.startswith("| ")][1:]
    assert [tuple(float(x) for x in row[1:]) for row in cells] == list(RATES.values())
