"""Configurations: keys of the release before."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import pytest

from trimtab.config import Config, build, override
from trimtab.errors import ConfigError


class Clip(Config):
    low: float = 0.2
    high: float = 0.2


class Old(Config):
    renamed: ClassVar[dict[str, str]] = {"batch": "batch_size", "clip_low": "clip.low"}
    batch_size: int = 32
    clip: Clip = Clip()


class OldChild(Old):
    renamed: ClassVar[dict[str, str]] = {"n": "num_completions"}
    num_completions: int = 1


def test_old_keys_are_read_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            config = build(OldChild, {"batch": 8, "clip_low": 0.1, "clip": {"high": 0.3}, "n": 4})
    assert (config.batch_size, config.clip.low, config.clip.high, config.num_completions) == (
        8,
        0.1,
        0.3,
        4,
    )
    assert [r.getMessage().split("the key ")[1].split(";")[0] for r in caplog.records] == [
        "'batch' is now 'batch_size'",
        "'clip_low' is now 'clip.low'",
        "'n' is now 'num_completions'",
    ]


def test_both_names_at_once_are_refused() -> None:
    with pytest.raises(ConfigError, match="'batch' is the old name of 'batch_size'"):
        build(Old, {"batch": 8, "batch_size": 8})


class Nested(Config):
    old: Old = Old()
    other: Old | None = None


@pytest.mark.parametrize(
    ("base", "over", "merged"),
    [
        ({"batch_size": 8}, {"batch": 4}, {"batch_size": 4}),
        ({"batch": 8}, {"batch_size": 4}, {"batch_size": 4}),
        (
            {"clip": {"low": 0.1, "high": 0.3}},
            {"clip_low": 0.4},
            {"clip": {"low": 0.4, "high": 0.3}},
        ),
    ],
)
def test_an_override_wins_over_the_other_name_of_its_key(
    base: dict[str, Any], over: dict[str, Any], merged: dict[str, Any]
) -> None:
    assert override(Old, base, over) == merged
    for key in ("old", "other"):
        assert override(Nested, {key: base}, {key: over}) == {key: merged}
