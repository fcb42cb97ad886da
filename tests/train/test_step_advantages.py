"""Advantages of reasoning steps: those that training would use, cut at the steps' ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import folders
from trimtab.cli.main import main as cli
from trimtab.config import build
from trimtab.errors import ConfigError
from trimtab.train.step_advantages import FILE, StepAdvantagesConfig, main

GAE = {"estimator": "gae", "baseline": "none", "scale": "none", "whiten": False}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steps")
    folders.model_folder(folder / "model")
    folders.prompts(folder / "prompts.jsonl", 24)
    return folder


def rows_of(base: Path, out: Path, **more: Any) -> list[dict[str, Any]]:
    word = folders.WORDS[0]
    values = {**folders.rl_settings(base, out), "separator": word, "prompts": 6, "completions": 4}
    main(build(StepAdvantagesConfig, {**values, **more}))
    return [json.loads(line) for line in (out / FILE).read_text().splitlines()]


def test_a_group_baseline_gives_every_step_the_same(base: Path, tmp_path: Path) -> None:
    method = {"type": "rloo", "group_size": 4, "kl": {"place": "none"}}
    rows = rows_of(base, tmp_path, method=method)
    assert len(rows) == 24
    for prompt in range(6):
        group = [r for r in rows if r["prompt"] == prompt]
        for row in group:
            others = [r["reward"] for r in group if r is not row]
            expected = row["reward"] - sum(others) / 3
            assert row["advantage"] == pytest.approx([expected] * len(row["steps"]), abs=1e-6)


CRITIC: dict[str, Any] = {
    "method": {"type": "grpo", "group_size": 1, "kl": {"place": "none"}, "advantage": GAE},
    "critic_batches": 3, "lams": [0.0, 1.0], "critic": {"optim": {"lr": 1e-2}}, "batch_size": 8,
}  # fmt: skip


def test_of_one_token_the_advantage_is_the_reward_less_the_value(
    base: Path, tmp_path: Path
) -> None:
    rows = rows_of(base, tmp_path, **CRITIC, sampling={"max_new_tokens": 1})
    assert any(abs(row["value"][0]) > 1e-4 for row in rows)  # the critic was trained
    for row in rows:
        expected = pytest.approx([row["reward"] - row["value"][0]], abs=1e-6)
        assert row["advantage"] == expected
        assert row["advantages"] == {"0": expected, "1": expected}


def test_lambda_changes_the_advantages_and_not_the_completions(base: Path, tmp_path: Path) -> None:
    rows = rows_of(base, tmp_path, **CRITIC)
    for row in rows:
        assert len(row["value"]) == len(row["steps"]) == len(row["advantages"]["1"])
    assert any(row["advantages"]["0"] != row["advantages"]["1"] for row in rows)
    group = {"type": "rloo", "group_size": 4, "kl": {"place": "none"}}
    same = rows_of(base, tmp_path / "again", method=group)
    assert [r["completion"] for r in same] == [r["completion"] for r in rows]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"critic_batches": 2}, "critic_batches trains a separate critic"),
        ({"lams": [0.5]}, "only a method with a critic has a lambda"),
        ({"completions": 1}, "needs two completions"),
    ],
)
def test_wrong_keys_are_named(
    base: Path, tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        rows_of(base, tmp_path, **more)


def test_as_a_command(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text(json.dumps(folders.rl_settings(base, tmp_path / "o")))
    cli(["step-advantages", str(file), "--separator", folders.WORDS[0], "--prompts", "3"])
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert summary["method"] == "rloo" and summary["completions"] == 3 * 8
    assert summary["explained_variance"] is None
