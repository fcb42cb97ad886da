"""Shaping: its numbers, its order, its state."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.support.oracles import completion, near
from trimtab.rewards.shape import Copying, Length, Overlong, Repetition, Shaper, ShapeSpec
from trimtab.types import Completion, Group


def spelled(ids: list[int], **fields: Any) -> Completion:
    return Completion(np.array(ids, np.int64), np.ones(len(ids), dtype=bool), **fields)


def prompt(*ids: int, done: list[Completion] | None = None) -> Group:
    return Group("g", np.array(ids or [1]), done or [])


def shaped(spec: dict[str, Any], *rewards: float | None) -> tuple[list[Completion], Shaper]:
    shaper = Shaper(ShapeSpec.model_validate(spec))
    done = [completion(4, reward=r) for r in rewards]
    shaper([prompt(done=done)])
    return done, shaper


@pytest.mark.parametrize(("n", "want"), [(80, 0), (81, -0.05), (90, -0.5), (100, -1), (101, -1)])
def test_O9b_soft_overlong(n: int, want: float) -> None:
    near(Overlong(max_length=100, cache=20)(completion(n), prompt()), want, 1e-12)


def test_O12_repetition() -> None:
    near(Repetition(n=2)(spelled([5] * 5), prompt()), -0.75, 1e-12)
    assert Repetition(n=2)(spelled([5, 6, 7]), prompt()) == 0.0
    assert Repetition(n=3)(spelled([5, 5]), prompt()) == 0.0


def test_repetition_counts_what_the_policy_wrote() -> None:
    c = Completion(np.array([5, 6, 9, 9, 9]), np.array([True, True, False, False, False]))
    assert Repetition(n=1)(c, prompt()) == 0.0


def test_copying() -> None:
    # Of the bigrams 56 67 78 the prompt has 56 and 67.
    near(Copying(n=2, threshold=0.5)(spelled([5, 6, 7, 8]), prompt(4, 5, 6, 7)), -1 / 6, 1e-12)
    assert Copying(n=2, threshold=0.7)(spelled([5, 6, 7, 8]), prompt(4, 5, 6, 7)) == 0.0
    assert Copying(n=3)(spelled([5, 6]), prompt(5, 6)) == 0.0


def test_length() -> None:
    near(Length(weight=2.0, target=4)(completion(6), prompt()), -1.0, 1e-12)
    assert Length(target=4)(completion(4), prompt()) == 0.0


def test_clip_comes_before_penalties_and_each_stage_is_kept() -> None:
    shaper = Shaper(ShapeSpec.model_validate({"clip": 1.0, "truncated": {"weight": 3.0}}))
    c = completion(4, reward=9.0, finish="length")
    metrics = shaper([prompt(done=[c])])
    assert (c.raw_reward, c.shaped_reward, c.reward) == (9.0, 1.0, -2.0)
    assert c.penalties == {"truncated": -3.0}
    assert metrics == {
        "reward/raw": 9.0, "reward/shaped": 1.0, "reward/final": -2.0,
        "penalty/truncated": -3.0, "reward/clipped": 1.0,
    }  # fmt: skip


def test_whitening_comes_before_the_clip() -> None:
    done, _ = shaped({"whiten": True, "clip": 0.5}, 100.0, 104.0)
    assert [c.reward for c in done] == [-0.5, 0.5]
    assert [c.raw_reward for c in done] == [100.0, 104.0]


def test_equal_rewards_whiten_to_zero() -> None:
    done, _ = shaped({"whiten": True}, 0.1, 0.1, 0.1)
    assert [c.reward for c in done] == pytest.approx([0.0] * 3, abs=1e-12)


def test_what_was_not_scored_stays_so() -> None:
    done, _ = shaped({"whiten": True, "length": {"target": 1}}, None, 1.0, 3.0)
    assert done[0].reward is None and done[0].raw_reward is None and done[0].penalties == {}
    near(done[1].shaped_reward or 0.0, -1.0, 1e-12)


def test_nothing_scored_gives_no_figures() -> None:
    assert Shaper(ShapeSpec(clip=1.0))([prompt(done=[completion(2)])]) == {}


def test_format_gives_and_takes() -> None:
    spec = {"format": {"pattern": "^<a>.*</a>$", "bonus": 0.5, "penalty": 2.0}}
    shaper = Shaper(ShapeSpec.model_validate(spec))
    done = [completion(2, reward=1.0, text=t) for t in ("<a>x</a>", "x")]
    shaper([prompt(done=done)])
    assert [c.reward for c in done] == [1.5, -1.0]


def test_format_counts_what_the_template_wrote_of_the_completion() -> None:
    """The pattern of docs/rewards.md, where the chat template ends the prompt with <think>."""
    shaper = Shaper(
        ShapeSpec.model_validate({"format": {"pattern": "(?s)^<think>.*</think>", "bonus": 0.2}})
    )
    done = [completion(2, reward=0.0, text=t) for t in ("a\nb</think>c", "a c")]
    group = prompt(done=done)
    group.prefill = "<think>\n"
    shaper([group])
    assert [c.reward for c in done] == [0.2, 0.0]


@pytest.mark.slow
def test_a_pattern_without_end_is_a_status() -> None:
    shaper = Shaper(ShapeSpec.model_validate({"format": {"pattern": "(a|a)*b|(x+x+)+y"}}))
    c = completion(2, reward=1.0, text="x" * 4000)
    assert shaper([prompt(done=[c])]) == {}
    assert c.reward is None and c.scores["format"].status == "timeout"


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20), st.integers(1, 19))
def test_a_resumed_shaper_goes_on_to_the_last_bit(values: list[float], cut: int) -> None:
    spec = ShapeSpec(whiten=True, clip=5.0)
    uninterrupted, first = Shaper(spec), Shaper(spec)
    for shaper in (uninterrupted, first):
        shaper([prompt(done=[completion(2, reward=v) for v in values[:cut]])])
    resumed = Shaper(spec)
    resumed.load(json.loads(json.dumps(first.state())))
    ends: list[list[float | None]] = []
    for shaper in (uninterrupted, resumed):
        done = [completion(2, reward=v) for v in values[cut:]]
        shaper([prompt(done=done)])
        ends.append([c.reward for c in done])
    assert ends[0] == ends[1]


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=9))
def test_no_shaping_changes_nothing(values: list[float]) -> None:
    done, _ = shaped({}, *values)
    assert [c.reward for c in done] == values == [c.raw_reward for c in done]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"overlong": {"max_length": 5, "cache": 9}}, "cache 9 is above max_length 5"),
        ({"format": {"pattern": "("}}, "not a regular expression"),
        ({"clip": 0}, "greater than 0"),
        ({"truncated": {"factor": 0.5}}, "Extra inputs"),
    ],
)
def test_nonsense_is_refused(spec: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ShapeSpec.model_validate(spec)
