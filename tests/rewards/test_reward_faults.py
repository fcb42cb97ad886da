"""Ten ways in which a reward function fails: each completion is masked or the error is typed, never a 0."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.support.rewarding import function, group_of, rewards
from trimtab.errors import RewardError
from trimtab.rewards.functions import UserFunction
from trimtab.types import Score

pytestmark = pytest.mark.slow

TIMEOUT = 2.0
STARTING = 120.0
"""A child that must only start and answer gets this long."""

MASKED: dict[str, str] = {
    "raises": "error", "hangs": "timeout", "nan": "masked", "inf": "masked", "none": "masked",
    "tensor_with_nan": "masked", "coroutine_that_raises": "error", "never": "timeout",
}  # fmt: skip
"""Functions whose completions have no reward, and the status of their score."""
TYPED = (
    "string",
    "one_string",
    "short",
    "long",
    "scalar",
    "tensor_0d",
    "tensor_2d",
    "coroutine_list",
)
"""Functions whose return breaks the contract."""
SCORED = ("tensor", "coroutine")
"""Unusual returns that hold one number per completion."""


def outcome(name: str, timeout: float | None) -> str:
    """ "masked" or "typed error" where the failure is one, "scored" for correct rewards, else the values."""
    group = group_of("a", "b")
    try:
        rewards(function(name, timeout=timeout))([group])
    except RewardError as error:
        return "typed error" if name in str(error) and "must return" in str(error) else str(error)
    values = [c.reward for c in group.completions]
    statuses = {c.scores["r"].status for c in group.completions}
    if values == [None, None] and statuses == {MASKED.get(name)}:
        return "masked"
    return "scored" if values == [1.0, 2.0] else f"{values} {statuses}"


def expected(name: str) -> str:
    return "masked" if name in MASKED else "typed error" if name in TYPED else "scored"


ENDLESS = ("hangs", "never")
"""Without a timeout a function runs in this process and blocks it, as documented."""
HERE = [(name, "here") for name in (*MASKED, *TYPED, *SCORED) if name not in ENDLESS]
IN_A_CHILD = (
    *ENDLESS, "raises", "nan", "none", "string", "short", "long", "tensor", "coroutine", "coroutine_list",
)  # fmt: skip


@pytest.mark.parametrize(("name", "place"), [*HERE, *((name, "child") for name in IN_A_CHILD)])
def test_no_failure_becomes_a_number(name: str, place: str) -> None:
    is_endless = name in ENDLESS
    timeout = None if place == "here" else TIMEOUT if is_endless else STARTING
    scorer_started = time.monotonic()
    result = outcome(name, timeout)
    assert result == expected(name)
    if is_endless:
        assert time.monotonic() - scorer_started < STARTING


@pytest.mark.parametrize("timeout", [None, STARTING])
def test_values_that_are_not_finite_mask_their_own_completions(timeout: float | None) -> None:
    group = group_of("a", "b", "c")
    rewards(function("first_only_finite", timeout=timeout))([group])
    assert [c.reward for c in group.completions] == [1.0, None, None]
    assert [c.scores["r"].status for c in group.completions] == ["ok", "masked", "masked"]


def test_a_hang_ends_at_the_timeout() -> None:
    scorer = rewards(function("hangs_on_slow", timeout=TIMEOUT))
    scorer([group_of("a", pace="quick")])  # the child has started
    begun = time.monotonic()
    group = group_of("a", pace="slow")
    scorer([group])
    assert TIMEOUT <= time.monotonic() - begun < TIMEOUT + 5.0
    assert group.completions[0].reward is None


def test_a_failure_that_is_scored_as_0_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: with what several libraries do, a number in place of a failure."""

    def swallow(self: UserFunction, *_: Any, **__: Any) -> Score:
        return Score(0.0)

    monkeypatch.setattr(UserFunction, "__call__", swallow)
    assert outcome("raises", None) == "[0.0, 0.0] {'ok'}"
