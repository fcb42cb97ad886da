"""A method in a file of one's own, by import path: trained with, recorded, refused when wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.support import folders
from tests.support.processes import Forked
from trimtab.cli.main import main as command
from trimtab.config import build, read_yaml
from trimtab.errors import ConfigError
from trimtab.runs import read_metrics
from trimtab.train import dpo
from trimtab.train.dpo import PreferenceConfig, PreferenceStage
from trimtab.train.rl import RLConfig, RLStage
from trimtab.train.rl import main as rl

ROOT = Path(__file__).parents[2]

MINE = '''
from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from trimtab.objectives.advantage import AdvantageSpec
from trimtab.objectives.pairs import Pairs, Scaled
from trimtab.objectives.policy import PolicyMethod


class Squared(Scaled):
    """(z - target)^2."""

    target: float = Field(default=2.0, gt=0.0)
    """Where the margin should be."""

    def loss(self, p: Pairs) -> Tensor:
        return (self.z(p) - self.target) ** 2


class Signs(PolicyMethod):
    """The sign of the advantage alone."""

    type: Literal["signs"] = "signs"
    advantage: AdvantageSpec = AdvantageSpec(baseline="group")

    def surrogate_loss(self, logp: Tensor, ratio: Tensor, advantage: Tensor) -> Tensor:
        return -ratio * torch.sign(advantage)


def halves(rewards_BT, mask_BT, final_B, group_B):
    return (0.5 * final_B)[:, None].expand(rewards_BT.shape)


def short(rewards_BT, mask_BT, final_B, group_B):
    return final_B
'''


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folders.model_folder(tmp_path / "model")
    folders.comparisons(tmp_path / "pairs.jsonl")
    folders.prompts(tmp_path / "prompts.jsonl")
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def direct(base: Path, **objective: Any) -> dict[str, Any]:
    return {
        "out": str(base / "out"), "model": {"path": str(base / "model"), "device": "cpu"},
        "data": {"path": str(base / "pairs.jsonl")}, "epochs": 1, "batch_size": 16,
        "objective": {"type": f"{base / 'mine.py'}:Squared", **objective}, "optim": {"lr": 1e-3},
    }  # fmt: skip


def online(base: Path, **method: Any) -> dict[str, Any]:
    return {
        "out": str(base / "out"), "model": {"path": str(base / "model"), "device": "cpu"},
        "data": {"path": str(base / "prompts.jsonl")}, "steps": 2, "batch_size": 4,
        "sampling": {"max_new_tokens": 6}, "optim": {"lr": 1e-3}, "method": {"group_size": 4, **method},
        "rewards": [{"name": "wordy", "function": f"{ROOT / 'tests' / 'support' / 'folders.py'}:wordy"}],
    }  # fmt: skip


def test_an_objective_trains_and_is_recorded(base: Path) -> None:
    config = build(PreferenceConfig, direct(base, target=1.5))
    stage = PreferenceStage(config)
    # At its start the policy is the reference: z = 0.
    assert stage.step(0)["loss"] == pytest.approx(1.5**2, rel=1e-5)
    assert stage.step(1)["loss"] < 1.5**2
    dpo.main(config)
    recorded = read_yaml(base / "out" / "config.yaml")
    assert recorded["objective"]["type"] == f"{base / 'mine.py'}:Squared"
    assert recorded["objective"]["target"] == 1.5
    again = build(PreferenceConfig, recorded)
    assert again.model_dump() == config.model_dump()
    figures = dpo.main(again.model_copy(update={"out": str(base / "again")}))
    assert figures["loss"] == read_metrics(base / "out")[-1]["loss"]


def test_an_advantage_function_trains(base: Path) -> None:
    """Half the advantages, twice the weight: the same step as without it."""
    half = f"{base / 'mine.py'}:halves"
    seen: list[np.ndarray] = []
    for method in ({"type": "dr_grpo"}, {"type": "dr_grpo", "advantage": {"estimator": half}}):
        stage = RLStage(build(RLConfig, online(base, **method)))
        metrics = stage.step(0)
        assert metrics["grad_norm/policy"] > 0
        seen.append(
            np.concatenate([c.tokens["advantage"] for g in stage.last for c in g.completions])
        )
    assert np.abs(seen[0]).max() > 0
    np.testing.assert_allclose(seen[1], seen[0] / 2, rtol=1e-6)


def test_a_policy_method_trains(base: Path) -> None:
    figures = rl(build(RLConfig, online(base, type=f"{base / 'mine.py'}:Signs")))
    assert np.isfinite(figures["policy/loss"])
    assert read_yaml(base / "out" / "config.yaml")["method"]["type"].endswith("mine.py:Signs")


def test_help_shows_its_keys(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(["dpo", "--objective.type", f"{base / 'mine.py'}:Squared", "--help"])
    output = capsys.readouterr().out
    assert "--objective.target" in output
    assert "Where the margin should be." in output


@pytest.mark.parametrize(
    ("objective", "word"),
    [
        ({"targt": 1.0}, "objective.targt: unknown key; did you mean 'target'?"),
        ({"target": -1.0}, "objective.target: Input should be greater than 0"),
        ({"type": "mine.py"}, "none of dpo, rpo"),
        ({"type": "BASE/mine.py:Nothing"}, "has no function 'Nothing'"),
        ({"type": "BASE/mine.py:Signs"}, "is no Direct"),
        ({"type": "BASE/mine.py:halves"}, "is no Direct"),
    ],
)
def test_what_is_wrong_is_said(objective: dict[str, Any], word: str, base: Path) -> None:
    settings = {
        k: v.replace("BASE", str(base)) if isinstance(v, str) else v for k, v in objective.items()
    }
    with pytest.raises(ConfigError) as error:
        build(PreferenceConfig, direct(base, **settings))
    assert word in str(error.value)


def test_an_advantage_of_the_wrong_shape_is_refused(base: Path) -> None:
    method = {"type": "dr_grpo", "advantage": {"estimator": f"{base / 'mine.py'}:short"}}
    stage = RLStage(build(RLConfig, online(base, **method)))
    with pytest.raises(ConfigError, match="must return a tensor of shape"):
        stage.step(0)


@pytest.mark.slow
def test_the_recipe_small(tmp_path: Path) -> None:
    small = [
        "--world.demonstrations", "96", "--world.prompts", "64", "--world.heldout", "40",
        "--sft.holdout", "16", "--sft.epochs", "1", "--sft.batch_size", "32", "--label.heldout", "12",
        "--apo.epochs", "1", "--apo.batch_size", "16", "--median.steps", "2", "--median.batch_size", "8",
    ]  # fmt: skip
    out = tmp_path / "run"
    # A process of its own: the recipe's file is imported by its name.
    Forked("run", "custom-method", "--out", str(out), *small).finish()
    figures = json.loads((out / "summary.json").read_text())
    for name in ("apo", "median"):
        assert 0 <= figures["win_rate"][name]["mean"] <= 1
        assert abs(figures["kl"][name]) < 5
    config = yaml.safe_load((out / "apo" / "config.yaml").read_text())
    assert config["objective"]["type"] == "trimtab.recipes.custom_method:APOZero"
