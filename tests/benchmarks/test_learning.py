"""A slice of ``make learning``: PPO must begin to learn, and a defect must be noticed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.learning.__main__ import main, small

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both runs start from one SFT model."""
    return tmp_path_factory.mktemp("learning")


def test_ppo_begins_to_learn(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks.learning", "--slice", "--out", str(out)])
    main()  # SystemExit says what it gained
    assert "gain" in capsys.readouterr().out


def test_a_reward_of_the_wrong_sign_is_noticed(out: Path) -> None:
    with pytest.raises(SystemExit, match=r"PPO gained -0\.\d+ in pass@1"):
        small(out, weight=-1.0)
