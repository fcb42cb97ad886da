"""The RL stage with environments: one turn without tools equals a completion, and what is recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import trimtab as tt
from tests.support.chatml import chatml_model
from trimtab.errors import ConfigError

PROMPTS = [
    {"prompt": [{"role": "user", "content": f"Tell me about the {n}"}], "target": i}
    for i, n in enumerate(["river", "garden", "engine", "window"])
]
KEYS: dict[str, Any] = {
    "method": "grpo", "steps": 2, "batch_size": 3, "sampling": {"max_new_tokens": 8},
    "optim": {"lr": 1e-3}, "loop": {"token_budget": 4096, "save_steps": 0},
}  # fmt: skip


def vowels(completions: list[str]) -> list[float]:
    return [float(sum(letter in "aeiou" for letter in c)) for c in completions]


class Silent:
    """An environment without tools."""

    def reset(self, **row: Any) -> None:
        assert row["prompt"][0]["role"] == "user" and row["target"] in range(4)


class Vowels(Silent):
    """Scores what a tool saw."""

    def __init__(self) -> None:
        self.heard = ""

    def reset(self, **row: Any) -> str:
        self.heard = ""
        return " Say something."

    def say(self, word: str) -> str:
        """
        Says a word.

        Args:
            word: The word.
        """
        self.heard += word
        return "ok"

    def get_reward(self) -> float:
        return float(len(self.heard))


def count(environments: list[Vowels], completions: list[str]) -> list[float]:
    assert all(isinstance(e, Vowels) for e in environments)
    return vowels(completions)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    config, tokenizer = chatml_model(tmp_path_factory.mktemp("model"))
    return {"path": str(config), "tokenizer": str(tokenizer), "device": "cpu"}


def test_an_episode_of_one_turn_trains_as_a_completion_does(
    model: dict[str, str], tmp_path: Path
) -> None:
    plain = tt.rl(model, PROMPTS, [vowels], out=tmp_path / "plain", **KEYS)
    played = tt.rl(
        model, PROMPTS, [vowels], environment_factory=Silent, out=tmp_path / "played", **KEYS
    )
    files = [Path(run.model) / "model.safetensors" for run in (plain, played)]
    first, second = (load_file(f) for f in files)
    assert all((first[name] == second[name]).all() for name in first)
    for column in ("reward/mean", "completion/length", "policy/loss"):
        assert plain.metrics[column].tolist() == played.metrics[column].tolist()
    assert played.samples["status"].isin(["ok", "truncated"]).all()
    assert "status" not in plain.samples


def test_rewards_of_environment_and_functions_are_summed(
    model: dict[str, str], tmp_path: Path
) -> None:
    run = tt.rl(
        model, None, [count], environment_factory=Vowels, out=tmp_path / "run",
        environment={"max_turns": 2}, **KEYS | {"steps": 1},
    )  # fmt: skip
    rows = run.samples
    assert (rows["reward"] == [s["Vowels"] + s["count"] for s in rows["scores"]]).all()
    assert set(run.metrics) >= {"reward/Vowels", "reward/count", "reward/tools/calls"}
    assert run.config["environment"]["factory"].endswith("test_environment_stage:Vowels")


def test_what_cannot_work_is_refused_before_it_starts(
    model: dict[str, str], tmp_path: Path
) -> None:
    def start(**keys: Any) -> None:
        tt.rl(model, PROMPTS, out=tmp_path / "refused", **{**KEYS, **keys})

    with pytest.raises(ConfigError, match="there is no reward"):
        start(tools=[Vowels.say])
    with pytest.raises(ConfigError, match="give the environment a method get_reward"):
        start(environment_factory=Silent)
    with pytest.raises(ConfigError, match="give prompts, or an environment_factory"):
        tt.rl(model, rewards=[vowels], **KEYS)
    with pytest.raises(ConfigError, match="episodes with tools have a reward at their end only"):
        start(environment_factory=Vowels, method="vineppo")
