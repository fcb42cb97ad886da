"""Every weight of a model is loaded from its folder, or the folder is refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import trimtab as tt
from tests.support import folders
from trimtab.config import build
from trimtab.errors import ModelError
from trimtab.evaluate import accuracy
from trimtab.launch.commands import find_command
from trimtab.models.heads import Scorer, score_layer
from trimtab.models.load import LM, renderer_for
from trimtab.models.model_spec import ModelSpec
from trimtab.models.step_scorer import StepScorer
from trimtab.rewards.part_config import RewardSpec
from trimtab.rewards.weighted_sum import Rewards


def spec(path: Path) -> ModelSpec:
    return ModelSpec(path=str(path), device="cpu")


@pytest.fixture
def lm(tmp_path: Path) -> Path:
    return folders.model_folder(tmp_path / "lm")


def edit(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change the weights of a folder."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, {"format": "pt"})


def test_no_reward_model_has_a_random_head(lm: Path, tmp_path: Path) -> None:
    good = folders.reward_folder(tmp_path / "rm", lm)
    headless = folders.reward_folder(tmp_path / "headless", lm)
    edit(headless, lambda w: w.pop("score.weight"))
    for path in (lm, headless):
        for read in (
            lambda path=path: Scorer.load(spec(path), train=False),
            lambda path=path: Rewards(
                [RewardSpec(name="r", model=str(path))], folders.tokenizer(), 99, "cpu"
            ),
            lambda path=path: Rewards(
                [RewardSpec(name="r", models=(str(good), str(path)), combine="average")],
                folders.tokenizer(),
                99,
                "cpu",
            ),
        ):
            with pytest.raises(ModelError, match=r"score\.weight is not .* would be random"):
                read()
    # A broken reward model is no start of training either, but a language model is.
    with pytest.raises(ModelError, match="has no trained head"):
        Scorer.load(spec(headless))
    assert Scorer.load(spec(good), train=False).mean == 0.0
    zeroed = Scorer.load(spec(lm), zero=True, pad_id=0)
    assert not score_layer(zeroed.model).weight.any()
    with pytest.raises(ModelError, match="has no trained head"):
        StepScorer.load(spec(lm), train=False)


def test_commands_refuse_a_random_head(lm: Path, tmp_path: Path) -> None:
    pairs, questions = folders.comparisons(tmp_path / "pairs.jsonl", 4), tmp_path / "p.jsonl"
    folders.prompts(questions, 4)
    values = {
        "rewards": [{"name": "r", "model": str(lm)}],
        "data": {"pairs": {"path": str(pairs)}},
        "tokenizer": str(lm),
        "out": str(tmp_path / "accuracy"),
    }
    with pytest.raises(ModelError, match="would be random"):
        accuracy.main(build(accuracy.AccuracyConfig, values))
    with pytest.raises(ModelError, match="would be random"):
        tt.rl(str(lm), str(questions), [tt.Reward(model=str(lm))], out=tmp_path / "rl", steps=1)
    with pytest.raises(ModelError, match="would be random"):
        tt.rl(
            str(lm), str(questions), [lambda completions, **_: [0.0 for _ in completions]],
            out=tmp_path / "prm", steps=1, process={"model": str(lm), "separator": "."},
        )  # fmt: skip


@pytest.mark.parametrize("name", ["best-of-n", "reward-labels", "compare", "online-dpo", "probe"])
def test_every_command_with_rewards_refuses_a_random_head(
    name: str, lm: Path, tmp_path: Path
) -> None:
    prompts = str(folders.prompts(tmp_path / "prompts.jsonl", 4))
    pair = {"prompt": "who is there ?", "completions": ["the cat", "the dog"]}
    items = str(folders.write(tmp_path / "items.jsonl", [{"id": "a", **pair}]))
    model, rewards = {"path": str(lm), "device": "cpu"}, [{"name": "r", "model": str(lm)}]
    values: dict[str, dict[str, Any]] = {
        "best-of-n": {"model": model, "data": {"path": prompts}, "rewards": rewards},
        "reward-labels": {"data": items, "rewards": rewards, "tokenizer": str(lm)},
        "compare": {"models": {"a": model, "b": model}, "data": prompts, "rewards": rewards},
        "online-dpo": {"model": model, "data": {"path": prompts}, "rewards": rewards, "steps": 1},
        "probe": {"reward": str(lm)},
    }
    command = find_command(name)
    config = build(command.load_config(), {**values[name], "out": str(tmp_path / "out")})
    with pytest.raises(ModelError, match="would be random"):
        command.run(config)


def test_missing_or_reshaped_weights_are_refused(lm: Path, tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.q_proj.weight"
    rm = folders.reward_folder(tmp_path / "rm", lm)
    with pytest.raises(ModelError, match=r"lm_head\.weight is not .* LlamaForSequence"):
        LM.load(spec(rm), train=False)
    edit(lm, lambda w: w.pop(name))
    for load in (LM.load, Scorer.load):
        with pytest.raises(ModelError, match=rf"{name} is not among its weights"):
            load(spec(lm))

    def shrink(weights: dict[str, Tensor]) -> None:
        weights[name] = torch.zeros(3, 3)

    edit(lm, shrink)
    with pytest.raises(ModelError, match=r"has shape \[3, 3\], but .* asks for \[32, 32\]"):
        LM.load(spec(lm))


@pytest.mark.parametrize("path", ["nowhere", "no/such/folder", "/no/such/folder"])
def test_a_model_that_is_nowhere(path: str) -> None:
    with pytest.raises(ModelError, match="no tokenizer at"):
        renderer_for(ModelSpec(path=path))
    with pytest.raises(ModelError, match="could not be loaded"):
        LM.load(ModelSpec(path=path))


def test_unused_weights_are_reported(
    lm: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        LM.load(spec(lm))
        Scorer.load(spec(lm), pad_id=0)  # its own head replaces lm_head
    assert not caplog.records
    values = json.loads((lm / "config.json").read_text())
    (lm / "config.json").write_text(json.dumps({**values, "num_hidden_layers": 1}))
    with caplog.at_level(logging.WARNING):
        LM.load(spec(lm))
    assert "model.layers.1" in caplog.text
    assert "not used by LlamaForCausalLM" in caplog.text
