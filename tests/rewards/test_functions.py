"""Reward functions: arguments by name, returns, failures, deadlines, async."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from tests.support.rewarding import function, group_of, rewards
from trimtab.errors import ConfigError, RewardError
from trimtab.types import Group

CHILD = 30.0
PROMPT = [{"role": "user", "content": "two plus two"}]


def scored(reward: dict[str, Any], *groups: Group) -> list[float | None]:
    rewards(reward)(groups)
    return [c.reward for g in groups for c in g.completions]


@pytest.mark.parametrize(
    ("name", "status", "timeout"),
    [
        ("raises", "error", None), ("raises", "error", CHILD), ("nan", "masked", None),
        ("nan", "masked", CHILD), ("inf", "masked", None), ("none", "masked", None),
    ],
)  # fmt: skip
def test_what_a_function_cannot_score_is_a_status(
    name: str, status: str, timeout: float | None
) -> None:
    group = group_of("a", "b")
    assert scored(function(name, timeout=timeout), group) == [None, None]
    for c in group.completions:
        assert (c.scores["r"].status, c.scores["r"].value) == (status, None)


@pytest.mark.parametrize(
    ("name", "says", "timeout"),
    [
        ("short", "one value for each of the 2 completions, but returned 1 values", None),
        ("short", "one value for each of the 2 completions, but returned 1 values", CHILD),
        ("long", "but returned 3 values", None),
        ("one_string", "but returned str", None),
        ("scalar", "but returned float", None),
        ("string", "value 1 is '0', of type str", None),
        ("string", "value 1 is '0', of type str", CHILD),
    ],
)
def test_a_wrong_return_is_an_error_that_names_the_function(
    name: str, says: str, timeout: float | None
) -> None:
    with pytest.raises(RewardError, match=rf"reward 'r' \(.*:{name}\) must return .*{says}"):
        scored(function(name, timeout=timeout), group_of("a", "b"))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("swapped", {}, [11.0, 10.0]),
        ("any_column", {}, [0.0, 1.0]),
        ("one_column", {}, [0.0, 1.0]),
        ("one_column", {"answer": ["a", "a"]}, [1.0, 0.0]),
        ("no_keywords", {}, [0.0, 1.0]),
        ("keyword_only", {"scale": 3.0}, [0.0, 3.0]),
        ("by_position", {}, [0.0, 1.0]),
        ("grader", {}, [0.0, 1.0]),
        ("doubled", {}, [0.0, 2.0]),
        ("later", {}, [0.0, 1.0]),
    ],
)
def test_arguments_are_passed_by_name(
    name: str, options: dict[str, Any], expected: list[float]
) -> None:
    group = group_of("a", "b", answer="b", unused=object())
    assert scored(function(name, options=options), group) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swapped", "keyword_only", "later"])
def test_a_child_process_passes_them_by_name_too(name: str) -> None:
    expected = [11.0, 10.0] if name == "swapped" else [0.0, 1.0]
    assert scored(function(name, timeout=CHILD), group_of("a", "b", answer="b")) == expected


def test_an_argument_that_is_no_column_is_named() -> None:
    with pytest.raises(
        RewardError, match=r"needs the argument 'texts', .* there are: answer, comp"
    ):
        scored(function("other_names"), group_of("a", answer="b"))


def test_an_option_that_is_no_parameter_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no parameter 'scael'.*: answer, completions, scale"):
        rewards(function("keyword_only", options={"scael": 2}))


def test_a_batch_may_have_no_row_with_a_column() -> None:
    scorer = rewards(
        function("one_column"), {"name": "v", "verifier": "exact", "options": {"column": "gold"}}
    )
    scorer.prepare({"answer", "gold"}, 1)
    group = group_of("a", task="other")
    scorer([group])
    assert group.completions[0].reward == 0.0, "the verifier has no answer; the function compared"
    assert group.completions[0].scores["v"].status == "masked"


# Conversations --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "more", "expected"),
    [
        ("first_message", {}, [4.0, 0.0]),
        ("first_message", {"timeout": CHILD}, [4.0, 0.0]),
        ("annotated", {}, [1.0, 1.0]),
        ("unannotated", {}, [4.0, 0.0]),
        ("unannotated", {"messages": True}, [1.0, 1.0]),
        ("annotated", {"messages": False}, [4.0, 0.0]),
    ],
)
def test_a_function_written_for_messages_is_given_messages(
    name: str, more: dict[str, Any], expected: list[float]
) -> None:
    assert scored(function(name, **more), group_of("four", "", messages=PROMPT)) == expected


def test_plain_prompts_are_texts_whatever_the_annotation() -> None:
    assert scored(function("annotated"), group_of("four")) == [4.0]


def test_the_first_call_decides() -> None:
    scorer = rewards(function("hangs_on_slow"))
    group = group_of("aa", messages=PROMPT, pace="quick")
    scorer([group])
    group.extra["pace"] = None
    scorer([group])
    assert group.completions[0].reward == 2.0, "texts, as before"


def test_arguments_that_trl_passes() -> None:
    scorer = rewards(function("with_extras"))
    scorer.prepare(set(), 8)
    group = group_of("a", "b")
    for c in group.completions:
        c.version = 2
    scorer([group])
    for c in group.completions:
        values = {name: s.value for name, s in c.scores.items()}
        assert values == {"r": 2.0, "r/twice": 4.0, "r/step": 0.25}


# Several parts --------------------------------------------------------------------------------


def test_each_row_is_scored_by_the_part_for_its_task() -> None:
    parts = [function(name, name=name, weight=w) for name, w in (("maths", 1.0), ("code", 0.5))]
    groups = [group_of("a", task=task) for task in ("maths", "code", "verse")]
    scorer = rewards(*parts)
    scorer(groups)
    assert [g.completions[0].reward for g in groups] == [1.0, 5.0, None]
    failing = rewards(*parts, function("raises"))
    failing(groups)
    assert [g.completions[0].reward for g in groups] == [None, None, None]


def test_async_functions_run_at_the_same_time() -> None:
    group = group_of("a")
    rewards(*(function("meets", name=name) for name in ("left", "right")))([group])
    assert group.completions[0].reward == 2.0, group.completions[0].scores


@pytest.mark.parametrize("timeout", [None, CHILD])
def test_a_judge_is_called_by_the_same_rules(timeout: float | None) -> None:
    judge = {"judge": "tests.support.reward_functions:later_judge", "timeout": timeout}
    groups = [group_of("a", "b", answer="b"), group_of("a", "b", answer="c")]
    scorer = rewards({"name": "j", **judge}, function("maths", options={"task": ["maths"] * 4}))
    scorer(groups)
    assert [c.reward for g in groups for c in g.completions] == [1.0, 2.0, 1.0, 1.0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["never", "hangs"])
def test_a_function_ends_at_its_deadline(name: str) -> None:
    group = group_of("a")
    start = time.monotonic()
    assert scored(function(name, timeout=0.5), group) == [None]
    assert time.monotonic() - start < 15.0
    assert group.completions[0].scores["r"].status == "timeout"


@pytest.mark.slow
def test_a_hang_is_killed_and_the_next_call_is_answered() -> None:
    scorer = rewards(function("hangs_on_slow", timeout=1.0))
    group = group_of("aa", "b", pace="slow")
    begun = time.monotonic()
    scorer([group])
    assert time.monotonic() - begun < 10.0
    assert [(c.reward, c.scores["r"].status) for c in group.completions] == [(None, "timeout")] * 2
    group = group_of("aa", "b", pace="quick")
    scorer([group])
    assert [c.reward for c in group.completions] == [2.0, 1.0]


def test_a_killed_child_is_gone() -> None:
    scorer = rewards(function("hangs", timeout=0.5))
    child = scorer.parts["r"].function.child  # type: ignore[attr-defined]
    pid = child._process.pid
    scorer([group_of("a")])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_child_that_dies_is_an_error_of_its_call() -> None:
    group = group_of("a")
    rewards(function("dies", timeout=30.0))([group])
    score = group.completions[0].scores["r"]
    assert (score.status, score.value) == ("error", None)
    assert "code 3" in score.detail


@pytest.mark.parametrize("timeout", [None, 30.0])
def test_a_missing_function_is_told_before_anything_is_scored(timeout: float | None) -> None:
    with pytest.raises(ConfigError, match="no function 'absent'"):
        rewards(function("absent", timeout=timeout))


def test_a_column_that_cannot_travel_is_named() -> None:
    with pytest.raises(RewardError, match="'pace' cannot"):
        rewards(function("hangs_on_slow", timeout=30.0))([group_of("a", pace=object())])
