"""Every configuration on the rewards page is valid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from trimtab.config import build
from trimtab.rewards.part_config import _KINDS  # pyright: ignore[reportPrivateUsage]
from trimtab.rewards.shape import _PENALTIES  # pyright: ignore[reportPrivateUsage]
from trimtab.train.rl import RLConfig

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("text", BLOCKS)
def test_builds(text: str) -> None:
    required = {"model": {"path": "m"}, "data": {"path": "d.jsonl"}, "method": {"type": "grpo"}}
    build(RLConfig, {**required, **yaml.safe_load(text)})


def test_every_part_and_penalty_is_there() -> None:
    assert len(BLOCKS) >= 6
    for name in (*_KINDS, *_PENALTIES):
        assert f"| `{name}` |" in PAGE, name
