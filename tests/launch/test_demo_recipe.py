"""The demo's recipe, small: whole, stopped and gone on, and its figures and report."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

import trimtab
from tests.support.processes import Forked, run_here

pytestmark = pytest.mark.slow

RECIPE = Path(trimtab.__file__).parent / "recipes" / "sandbox-ppo.yaml"
SMALL = [
    "--world.demonstrations", "336", "--world.prompts", "96", "--world.heldout", "60",
    "--sft.holdout", "16", "--sft.epochs", "1", "--sft.batch_size", "32",
    "--label.heldout", "20", "--reward.epochs", "1", "--reward.batch_size", "16",
    "--ppo.steps", "4", "--ppo.batch_size", "16", "--flaw.steps", "4", "--flaw.batch_size", "16",
    "--ppo.loop.save_steps", "1",
]  # fmt: skip
FIGURES = [
    "seconds", "peak_rss_mb", "reward_model.accuracy", "reward_model.ceiling", "gold.base", "gold.sft",
    "gold.rl", *(f"gold.{m}_{end}" for m in ("base", "sft", "rl") for end in ("low", "high")), "gold.win_rate", "gold.win_rate_low", "gold.win_rate_high", "kl", "distinct_2.sft",
    "distinct_2.rl", "flaw.proxy_gain", "flaw.gold_gain",
]  # fmt: skip


def words(out: Path, *more: str) -> tuple[str, ...]:
    return "run", str(RECIPE), "--out", str(out), *SMALL, *more


@pytest.fixture(scope="module")
def complete_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "run"
    output = run_here(*words(out))
    assert "report:" in output
    assert "try: trimtab chat" in output
    return out


def test_every_promised_figure_is_there(complete_run: Path) -> None:
    figures = json.loads((complete_run / "summary.json").read_text())
    for name in FIGURES:
        place = figures
        for part in name.split("."):
            place = place[part]
        assert isinstance(place, float | int), name
    gold = figures["gold"]
    for model in ("base", "sft", "rl"):
        assert 0 < gold[f"{model}_low"] < gold[model] < gold[f"{model}_high"] < 1
    assert gold["base_high"] < gold["sft_low"]  # ten steps of SFT teach the format
    assert figures["reward_model"]["ceiling"] > 0.6
    assert figures["seconds"] > 1


def test_the_report_shows_every_part(complete_run: Path) -> None:
    page = (complete_run / "report.html").read_text()
    for title in (
        "Is the reward real?", "What each stage reaches", "The reward model",
        "Completions side by side", "Calibration", "Ceiling", "Entropy", "Completion length",
        "Value function", "Flawed RL", "Gold by part", "Diversity and length",
    ):  # fmt: skip
        assert title in page, title
    assert "<script" not in page


@pytest.mark.timeout(400)
def test_stopped_in_ppo_it_goes_on_to_the_same_weights(complete_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = Forked(*words(out))
    deadline = time.monotonic() + 300
    while not list((out / "ppo" / "checkpoints").glob("*")):
        assert process.poll() is None, process.output()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "summary.json").exists()
    output = Forked(*words(out)).finish()
    assert "sft: already complete" in output
    assert "label: already complete" in output
    for stage in ("sft", "reward", "ppo", "flaw"):
        resumed_weights, complete_weights = (
            p / stage / "model" / "model.safetensors" for p in (out, complete_run)
        )
        assert resumed_weights.read_bytes() == complete_weights.read_bytes(), stage


def test_other_settings_do_not_overwrite(complete_run: Path) -> None:
    before = (complete_run / "ppo" / "model" / "model.safetensors").read_bytes()
    output = Forked(*words(complete_run, "--ppo.method.kl.beta", "0.7")).finish(status=2)
    assert "--fresh" in output
    assert "Traceback" not in output
    assert (complete_run / "ppo" / "model" / "model.safetensors").read_bytes() == before


def test_inputs_and_earlier_stages_are_checked(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("out: o\ninputs: {data: nowhere}\nstages: {}\n")
    output = Forked("run", str(recipe)).finish(status=2)
    assert "--inputs.data" in output
    recipe.write_text("out: o\nstages: {a: {type: sandbox-data, out: '@later/x'}}\n")
    output = Forked("run", str(recipe)).finish(status=2)
    assert "stages.a.out" in output
    assert "Traceback" not in output
