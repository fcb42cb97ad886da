"""Environments of the real package verifiers, in an interpreter of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.chatml import chatml_model
from tests.support.scripted_engine import ScriptedEngine, mask_runs, replies
from trimtab.data.formats import Example
from trimtab.data.load_tokenizer import load_tokenizer
from trimtab.data.render import Renderer
from trimtab.errors import ConfigError
from trimtab.rollout.agents import Agents
from trimtab.rollout.environment import EnvironmentSpec
from trimtab.rollout.episode_scores import score_episodes
from trimtab.rollout.verifiers import rows
from trimtab.sample.sampler import SamplingConfig
from trimtab.types import Group

TASKSET = """
import verifiers.v1 as vf

__all__ = ["RiverTaskset"]

class RiverData(vf.TaskData):
    word: str

class RiverTask(vf.Task[RiverData]):
    @vf.reward(weight=0.5)
    async def length(self, trace: vf.Trace) -> float:
        return float(len(trace.last_reply))

    @vf.reward
    async def bonus(self, trace: vf.Trace) -> float:
        if self.data.word == "broken":
            raise ValueError("this task cannot be scored")
        return 1.0

class RiverTaskset(vf.Taskset[RiverTask, vf.TasksetConfig]):
    def load(self):
        for word in ("river", "garden", "broken"):
            data = RiverData(prompt=f"Tell me about the {word}", word=word)
            yield RiverTask(data, self.config.task)
"""
ENVIRONMENT = {
    "taskset": {"id": "river_taskset"},
    "agent": {"harness": {"id": "null"}, "runtime": {"type": "subprocess"}},
}


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = os.environ.get("TRIMTAB_VERIFIERS_PYTHON", "")
    if not path:
        pytest.skip("set TRIMTAB_VERIFIERS_PYTHON to an interpreter that has verifiers 0.4 and uv")
    (tmp_path / "river_taskset.py").write_text(TASKSET)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return path


@pytest.mark.slow
def test_traces_become_named_scores_and_failures(python: str, tmp_path: Path) -> None:
    renderer = Renderer(load_tokenizer(str(chatml_model(tmp_path)[1])))
    tasks = rows(python, ENVIRONMENT)
    assert [r["task"] for r in tasks] == [0, 1, 2]
    prompts: list[Group] = []
    for row in tasks:
        group = renderer.prompt(Example(str(row["task"]), row["prompt"], [], extra=row))
        assert group is not None
        prompts.append(group)
    options: dict[str, Any] = {"python": python, "environment": ENVIRONMENT}
    spec = EnvironmentSpec(agent="trimtab.rollout.verifiers:play", options=options)
    engine = ScriptedEngine(renderer, replies("a river"))
    groups = Agents(spec, renderer, 512)(engine, prompts, SamplingConfig(), n=2, key=(0,))
    score_episodes(
        groups, lambda gs: [setattr(c, "reward", 0.0) for g in gs for c in g.completions] and None
    )
    for group in groups[:2]:
        for c in group.completions:
            assert {k: s.value for k, s in c.scores.items()} == {"length": 3.5, "bonus": 1.0}
            assert c.reward == 4.5 and c.status == "ok" and c.text == "a river"
            assert mask_runs(c.mask) == [(t.start, t.stop) for t in c.turns]
    for c in groups[2].completions:
        assert c.status == "failed" and c.reward is None
        assert "this task cannot be scored" in c.scores["play"].detail


def test_what_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be started"):
        rows(str(tmp_path / "python"), ENVIRONMENT)
