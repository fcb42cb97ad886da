"""Verifiers: what is read as the answer, and when it is right."""

from __future__ import annotations

import sys
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.rewarding import group_of, rewards
from trimtab.errors import ConfigError, DataError
from trimtab.rewards.part_config import RewardSpec
from trimtab.rewards.rules import VerifierPart, last_number


def judged(verifier: str, text: str, options: dict[str, Any] | None = None, **row: Any) -> Any:
    spec = RewardSpec.model_validate({"name": "v", "verifier": verifier, "options": options or {}})
    assert spec.verifier is not None
    part = VerifierPart("v", spec.verifier, spec.options, spec.timeout)
    score = part([group_of(text, **row)])["v"][0]
    return score.value if score.ok else score.status


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 1,234", 1234), ("x is -3", -3), ("5-3", 3), ("−7", -7), ("-$5", -5), ("$-5", -5),
        ("3.50.", Fraction(7, 2)), (".5", Fraction(1, 2)), ("1,000,000.25", Fraction(4000001, 4)),
        ("1/2 of 3/4", Fraction(3, 4)), ("-\\frac{1}{2}", Fraction(-1, 2)), ("1e3", 1000),
        ("1{,}234", 1234), ("10%", 10), ("3/0", None), ("none", None), ("9" * 5000, None),
        ("1e999999999", 999999999),
    ],
)  # fmt: skip
def test_numbers_are_read(text: str, number: Any) -> None:
    assert last_number(text) == number


@given(st.fractions(max_denominator=10**6), st.booleans())
def test_a_written_number_is_read_back(x: Fraction, thousands: bool) -> None:
    top = f"{x.numerator:,}" if thousands else str(x.numerator)
    assert last_number(f"so it is {top}/{x.denominator}.") == x


@pytest.mark.slow
@given(st.text(max_size=80))
def test_reading_a_number_never_raises(text: str) -> None:
    assert last_number(text) is None or isinstance(last_number(text), Fraction)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verifier", "text", "options", "row", "want"),
    [
        ("numeric", "6*7 = 42.0", {}, {"answer": "Six sevens.\n#### 42"}, 1.0),
        ("numeric", "#### 42\nQuestion: 5", {}, {"answer": "#### 42"}, 1.0),
        ("numeric", "it is 41", {}, {"answer": "#### 42"}, 0.0),
        ("numeric", "who knows", {}, {"answer": "#### 42"}, 0.0),
        ("numeric", "42", {}, {"answer": "none"}, "invalid"),
        ("numeric", "42", {}, {"answer": None}, "masked"),
        ("numeric", "42", {}, {"answer": ""}, "masked"),
        ("numeric", "0.333", {"tolerance": 0.01}, {"answer": "1/3"}, 1.0),
        ("numeric", "0.333", {}, {"answer": "1/3"}, 0.0),
        ("numeric", "42", {"column": "gold"}, {"gold": 42}, 1.0),
        ("numeric", "42 and 7", {"extract": r"#### (.*)"}, {"answer": "#### 7"}, 0.0),
        ("exact", " New  York", {}, {"answer": "New York"}, 1.0),
        ("exact", "new york", {}, {"answer": "New York"}, 0.0),
        ("exact", "new york", {"ignore_case": True}, {"answer": ["NYC", "New York"]}, 1.0),
        ("exact", "<a>x</a>", {"extract": "<a>(.*?)</a>"}, {"answer": "x"}, 1.0),
        ("regex", "say yes!", {"pattern": "yes"}, {}, 1.0),
        ("regex", "say yes!", {"pattern": "yes", "full": True}, {}, 0.0),
        ("regex", "say yes!", {"column": "want"}, {"want": "y.s"}, 1.0),
        ("regex", "say yes!", {"column": "want"}, {"want": "("}, "invalid"),
        ("regex", "x" * 4000, {"pattern": "(a|a)*b|(x+x+)+y"}, {}, "timeout"),
    ],
)  # fmt: skip
def test_verifiers(
    verifier: str, text: str, options: dict[str, Any], row: dict[str, Any], want: Any
) -> None:
    assert judged(verifier, text, options, **row) == want


@pytest.mark.parametrize(
    ("verifier", "text", "options", "row", "want"),
    [
        ("numeric", "<think>42</think>41", {}, {"answer": "42"}, 0.0),
        ("numeric", "it may be 42 </think> It is 41.", {}, {"answer": "42"}, 0.0),
        ("numeric", "<think>41</think>42", {}, {"answer": "42"}, 1.0),
        ("numeric", "<think>so it is 42", {}, {"answer": "42"}, 0.0),
        ("numeric", "42", {}, {"answer": "<think>41?</think> #### 42"}, 1.0),
        ("exact", "[THINK]4[/THINK]5", {}, {"answer": "5"}, 1.0),
        ("exact", "<|channel|>analysis<|message|>4assistant<|channel|>final<|message|>5", {},
         {"answer": "5"}, 1.0),
        ("exact", "<think><a>x</a></think>y", {"extract": "<a>(.*?)</a>"}, {"answer": "x"}, 0.0),
        ("regex", "<think>yes</think>no", {"pattern": "yes"}, {}, 0.0),
        ("regex", "<think>yes</think>no", {"pattern": "yes", "after_thoughts": False}, {}, 1.0),
        ("regex", "<think>a</think>b", {"pattern": "^<think>.*</think>"}, {}, 1.0),
        ("regex", "<think>a</think>b", {"pattern": "b", "full": True}, {}, 1.0),
    ],
)  # fmt: skip
def test_the_answer_stands_after_the_thoughts(
    verifier: str, text: str, options: dict[str, Any], row: dict[str, Any], want: Any
) -> None:
    assert judged(verifier, text, options, **row) == want


@pytest.mark.parametrize(
    ("text", "prefill", "want"),
    [("a</think>b", "<think>\n", 1.0), ("a</think>b", "", 0.0), ("a", "<think>\n", 0.0)],
)
def test_what_the_template_wrote_belongs_to_the_completion(
    text: str, prefill: str, want: float
) -> None:
    spec = RewardSpec(verifier="regex", options={"pattern": "(?s)^<think>.*</think>"})
    assert spec.verifier is not None
    group = group_of(text)
    group.prefill = prefill
    part = VerifierPart("v", spec.verifier, spec.options, None)
    assert part([group])["v"][0].value == want
    unfinished = VerifierPart("v", "exact", {"column": "gold"}, None)
    group.extra["gold"] = "a"
    assert unfinished([group])["v"][0].value == float(not prefill and text == "a")


def test_a_column_that_no_row_has_is_an_error() -> None:
    with pytest.raises(DataError, match=r"'answer', but the rows' columns .* are: gold"):
        judged("numeric", "42", gold=42)


@pytest.mark.slow
def test_mathematics_outlives_an_answer_that_hangs() -> None:
    part = VerifierPart("m", "math", {}, 2.0)
    cases = [
        ("so $\\frac{1}{2}$", "0.5", "1.0"), ("\\boxed{x+1}", "1+x", "1.0"),
        ("I do not know", "42", "0.0"), ("43", "#### 42", "0.0"),
        ("it is $41$, or \\boxed{42}</think>so \\boxed{41}", "42", "0.0"),
        ("<think>\\boxed{41}</think>so \\boxed{42}", "42", "1.0"), ("<think>\\boxed{42}", "42", "0.0"),
        ("42", "?", "invalid"), ("$9^{9^{9^{9}}}$", "3", "timeout"),
        ("42", "Then\n#### 42", "1.0"),
    ]  # fmt: skip
    for text, gold, want in cases:
        score = part([group_of(text, answer=gold)])["m"][0]
        assert str(score.value if score.ok else score.status) == want, (text, gold, score)


def test_a_missing_math_verify_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ConfigError, match=r"pip install 'trimtab\[math\]'"):
        rewards({"name": "v", "verifier": "math"})
