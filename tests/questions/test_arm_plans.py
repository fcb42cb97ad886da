"""The stages of every arm and start are configurations that the library accepts; nothing is run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trimtab.launch import recipe as recipes
from trimtab.questions import claim as registry
from trimtab.questions import hacked_start, judge_start, q09, q13
from trimtab.questions.claim import Settings

Stages = dict[str, dict[str, Any]]
ARMS: dict[int, Callable[[dict[str, Any], Settings], Stages]] = {
    7: hacked_start.stages,
    9: q09.stages,
    13: q13.stages,
}
STARTS: dict[int, Callable[[int, Settings], Stages]] = {
    7: hacked_start.digest_stages,
    9: q09.start_stages,
    13: judge_start.start_stages,
}


def plan(stages: Stages, tmp_path: Path, name: str) -> None:
    inputs = {"start": str(tmp_path), "models": str(tmp_path)}
    recipe = recipes.Recipe(out=str(tmp_path / "out"), seed=1, inputs=inputs, stages=stages)
    assert len(recipes.plan(recipe, name)) == len(stages)


@pytest.mark.parametrize("number", sorted(ARMS))
def test_every_arm_can_be_planned(number: int, tmp_path: Path) -> None:
    settings = registry.load_settings()[number]
    for name, values in settings.arms.items():
        if "choose" not in values:  # it only compares completions of the start
            plan(ARMS[number](values, settings), tmp_path, name)
    plan(STARTS[number](1, settings), tmp_path, "start")
