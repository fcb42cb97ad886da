"""Verifiers, functions under a deadline, ensembles: numbers, and every way to fail."""

from __future__ import annotations

import os
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoModelForSequenceClassification

from tests.support.folders import model_folder, reward_folder, tokenizer, write
from tests.support.oracles import f64, near
from trimtab.errors import ConfigError, DataError, ModelError, RewardError
from trimtab.models.heads import Scorer
from trimtab.models.load import ModelSpec
from trimtab.objectives.bradley_terry import ensemble
from trimtab.rewards.part_config import RewardSpec
from trimtab.rewards.rules import VerifierPart, last_number
from trimtab.rewards.weighted_sum import Rewards
from trimtab.stats.running import RunningFit
from trimtab.types import Completion, Group

HERE = Path(__file__).parents[1] / "support"


def asked(*texts: str, **extra: Any) -> Group:
    done = [Completion(np.array([3, 2]), np.array([True, True]), t) for t in texts]
    return Group("7", np.array([1]), done, "q", extra)


def rewards(*specs: dict[str, Any]) -> Rewards:
    parsed = [RewardSpec.model_validate(s) for s in specs]
    return Rewards(parsed, tokenizer(), 512, "cpu")


def bad(name: str, **more: Any) -> Rewards:
    return rewards({"name": "r", "function": f"tests.support.bad_rewards:{name}", **more})


# Functions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [None, 30.0], ids=["here", "child"])
@pytest.mark.parametrize(
    ("name", "status"),
    [("raises", "error"), ("nan", "invalid"), ("inf", "invalid"), ("none", "invalid"),
     ("string", "invalid")],
)  # fmt: skip
def test_what_a_function_cannot_score_is_a_status(
    name: str, status: str, timeout: float | None
) -> None:
    group = asked("a", "b")
    bad(name, timeout=timeout)([group])
    assert [c.reward for c in group.completions] == [None, None]
    for c in group.completions:
        assert (c.scores["r"].status, c.scores["r"].value) == (status, None)


@pytest.mark.parametrize("timeout", [None, 30.0], ids=["here", "child"])
@pytest.mark.parametrize("name", ["short", "long", "one_string"])
def test_a_function_that_breaks_its_contract_is_an_error(name: str, timeout: float | None) -> None:
    with pytest.raises(RewardError, match=r"'r' .* one number for each of the 2 completions"):
        bad(name, timeout=timeout)([asked("a", "b")])


@pytest.mark.parametrize("timeout", [None, 30.0], ids=["here", "child"])
@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("swapped", {}, [11.0, 10.0]),
        ("any_column", {}, [0.0, 1.0]),
        ("one_column", {}, [0.0, 1.0]),
        ("keyword_only", {"scale": 3.0}, [0.0, 3.0]),
    ],
)
def test_arguments_are_passed_by_name(
    name: str, options: dict[str, Any], expected: list[float], timeout: float | None
) -> None:
    group = asked("a", "b", answer="b", unused=object() if timeout is None else "")
    bad(name, timeout=timeout, options=options)([group])
    assert [c.reward for c in group.completions] == expected


def test_an_argument_that_is_no_column_is_named() -> None:
    group = asked("a")
    bad("other_names")([group])
    score = group.completions[0].scores["r"]
    assert score.status == "error" and "'texts'" in score.detail


def test_a_hang_is_killed_and_the_next_call_is_answered() -> None:
    scorer = bad("hangs_on_slow", timeout=1.0)
    group = asked("aa", "b", pace="slow")
    begun = time.monotonic()
    scorer([group])
    assert time.monotonic() - begun < 10.0
    assert [(c.reward, c.scores["r"].status) for c in group.completions] == [(None, "timeout")] * 2
    group = asked("aa", "b", pace="quick")
    scorer([group])
    assert [c.reward for c in group.completions] == [2.0, 1.0]


def test_a_killed_child_is_gone() -> None:
    scorer = bad("hangs", timeout=0.5)
    child = scorer.parts["r"].child  # type: ignore[attr-defined]
    pid = child._process.pid
    scorer([asked("a")])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_child_that_dies_is_an_error_of_its_call() -> None:
    group = asked("a")
    bad("dies", timeout=30.0)([group])
    score = group.completions[0].scores["r"]
    assert (score.status, score.value) == ("error", None)
    assert "code 3" in score.detail


@pytest.mark.parametrize("timeout", [None, 30.0])
def test_a_missing_function_is_told_before_anything_is_scored(timeout: float | None) -> None:
    with pytest.raises(ConfigError, match="no function 'absent'"):
        bad("absent", timeout=timeout)


def test_a_missing_math_verify_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ConfigError, match=r"pip install 'trimtab\[math\]'"):
        rewards({"name": "v", "verifier": "math"})


def test_a_column_that_cannot_travel_is_named() -> None:
    with pytest.raises(RewardError, match="'pace' cannot"):
        bad("hangs_on_slow", timeout=30.0)([asked("a", pace=object())])


# Verifiers ------------------------------------------------------------------------------------


def judged(verifier: str, text: str, options: dict[str, Any] | None = None, **row: Any) -> Any:
    spec = RewardSpec.model_validate({"name": "v", "verifier": verifier, "options": options or {}})
    assert spec.verifier is not None
    part = VerifierPart("v", spec.verifier, spec.options, spec.timeout)
    score = part([asked(text, **row)])["v"][0]
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


@given(st.text(max_size=80))
def test_reading_a_number_never_raises(text: str) -> None:
    assert last_number(text) is None or isinstance(last_number(text), Fraction)


@pytest.mark.parametrize(
    ("verifier", "text", "options", "row", "want"),
    [
        ("numeric", "6*7 = 42.0", {}, {"answer": "Six sevens.\n#### 42"}, 1.0),
        ("numeric", "#### 42\nQuestion: 5", {}, {"answer": "#### 42"}, 1.0),
        ("numeric", "it is 41", {}, {"answer": "#### 42"}, 0.0),
        ("numeric", "who knows", {}, {"answer": "#### 42"}, 0.0),
        ("numeric", "42", {}, {"answer": "none"}, "invalid"),
        ("numeric", "42", {}, {"answer": None}, "invalid"),
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


def test_a_column_that_no_row_has_is_an_error() -> None:
    with pytest.raises(DataError, match=r"'answer', but the rows' columns .* are: gold"):
        judged("numeric", "42", gold=42)


def test_mathematics_outlives_an_answer_that_hangs() -> None:
    part = VerifierPart("m", "math", {}, 2.0)
    cases = [
        ("so $\\frac{1}{2}$", "0.5", "1.0"), ("\\boxed{x+1}", "1+x", "1.0"),
        ("I do not know", "42", "0.0"), ("43", "#### 42", "0.0"),
        ("42", "?", "invalid"), ("$9^{9^{9^{9}}}$", "3", "timeout"),
        ("42", "Then\n#### 42", "1.0"),
    ]  # fmt: skip
    for text, gold, want in cases:
        score = part([asked(text, answer=gold)])["m"][0]
        assert str(score.value if score.ok else score.status) == want, (text, gold, score)


# Configuration --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({}, "give one of model, models, function, judge, ai, verifier, not none"),
        ({"model": "a", "function": "b:c"}, "not model and function"),
        ({"models": ["a"]}, "two or more"),
        ({"models": ["a", "a"]}, "twice"),
        ({"model": "a", "combine": "worst"}, "'combine' belongs to models"),
        ({"model": "a", "timeout": 3}, "'timeout' belongs to function or judge or verifier"),
        ({"function": "b:c", "residual_length": True}, "'residual_length' belongs to model"),
        ({"verifier": "numeric", "options": {"colum": "x"}}, "did you mean 'column'"),
        ({"verifier": "exact", "options": {"extract": "("}}, "not a regular expression"),
        ({"verifier": "regex"}, "give 'pattern'"),
        ({"verifier": "exact", "timeout": 3}, "'timeout' is for"),
    ],
)
def test_nonsense_is_refused_with_the_reason(spec: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        RewardSpec.model_validate({"name": "r", **spec})


# Learned --------------------------------------------------------------------------------------


def test_O3c_ensembles() -> None:
    scores = f64([[1.0], [2.0], [4.0]])
    near(ensemble(scores, "mean"), [7 / 3])
    near(ensemble(scores, "worst"), [1.0])
    near(ensemble(scores, "uncertainty", 0.5), [1.555556])
    near(ensemble(scores, "uncertainty", 0.0), [7 / 3])
    near(ensemble(f64([[2.0], [2.0]]), "uncertainty", 0.5), [2.0])


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three reward models with statistics of their own."""
    base = model_folder(tmp_path_factory.mktemp("base"))
    folders_of_members: list[str] = []
    for i in range(3):
        scorer = Scorer.load(ModelSpec(path=str(base), seed=i, device="cpu"), pad_id=0)
        with torch.no_grad():
            for p in scorer.model.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
        scorer.set_normalisation(float(i), 1.0 + i)
        folder = tmp_path_factory.mktemp(f"rm{i}")
        scorer.model.save_pretrained(folder)  # type: ignore[operator]
        tokenizer().save_pretrained(folder)
        folders_of_members.append(str(folder))
    return folders_of_members


def talk(seed: int = 0) -> list[Group]:
    rng = np.random.default_rng(seed)

    def answer() -> Completion:
        ids = rng.integers(6, 26, int(rng.integers(2, 9)))
        return Completion(ids, np.ones(len(ids), dtype=bool), tokenizer().decode(ids))

    return [Group(str(i), rng.integers(6, 26, 4), [answer(), answer()], "q") for i in range(4)]


def got(groups: list[Group], name: str) -> list[float]:
    values = [c.scores[name].value for g in groups for c in g.completions]
    assert all(v is not None for v in values)
    return [v for v in values if v is not None]


@pytest.mark.parametrize("how", ["mean", "worst", "uncertainty"])
def test_an_ensemble_combines_standardised_members(members: list[str], how: str) -> None:
    groups = talk()
    rewards({"name": "rm", "models": members, "combine": how, "uncertainty_weight": 0.5})(groups)
    raw = np.array([got(groups, f"rm/{i}") for i in range(3)])
    apart = talk()
    for i, path in enumerate(members):
        rewards({"name": f"m{i}", "model": path})(apart)
    alone = np.array([got(apart, f"m{i}") for i in range(3)])
    np.testing.assert_allclose((raw - [[0], [1], [2]]) / [[1], [2], [3]], alone, atol=1e-5)
    want = {
        "mean": alone.mean(0), "worst": alone.min(0),
        "uncertainty": alone.mean(0) - 0.5 * alone.var(0),
    }[how]  # fmt: skip
    np.testing.assert_allclose(got(groups, "rm"), want, atol=1e-5)
    np.testing.assert_allclose(got(groups, "rm/disagreement"), alone.std(0), atol=1e-5)
    np.testing.assert_allclose([c.reward for g in groups for c in g.completions], want, atol=1e-5)


def test_average_is_one_model_with_the_mean_of_the_weights(members: list[str]) -> None:
    scorer = rewards({"name": "rm", "models": members, "combine": "average"})
    part = scorer.parts["rm"]
    assert len(part.members) == 1  # type: ignore[attr-defined]
    averaged = part.members[0].scorer.model.state_dict()  # type: ignore[attr-defined]
    theirs = [
        AutoModelForSequenceClassification.from_pretrained(p, num_labels=1).state_dict()
        for p in members
    ]
    for name, weight in averaged.items():
        torch.testing.assert_close(weight, torch.stack([t[name] for t in theirs]).mean(0))
    groups = talk()
    scorer(groups)
    assert set(groups[0].completions[0].scores) == {"rm"}


def reference(path: Path) -> str:
    rows: list[dict[str, object]] = [
        {"prompt": "what is", "completion": " ".join(["red cat", "sun", "moon ?"][: 1 + i % 3])}
        for i in range(6)
    ]
    return str(write(path, rows))


def test_a_reference_takes_the_place_of_saved_statistics(
    members: list[str], tmp_path: Path
) -> None:
    path = reference(tmp_path / "ref.jsonl")
    part = rewards({"name": "rm", "models": members, "reference": path}).parts["rm"]
    from trimtab.data import formats, sources
    from trimtab.data.render import Renderer

    render = Renderer(tokenizer(), max_prompt_length=99, max_completion_length=99)
    groups = [
        g
        for e in formats.demonstrations(sources.read(path))
        if (g := render.comparison(e)) is not None
    ]
    for m in part.members:  # type: ignore[attr-defined]
        on = m.standardise(m.scores(groups))
        near(on.mean(), 0.0, 1e-5)
        near(on.std(correction=0), 1.0, 1e-5)


def test_members_without_a_common_scale_are_refused(tmp_path: Path, members: list[str]) -> None:
    bare = str(reward_folder(tmp_path / "bare", model_folder(tmp_path / "lm")))
    with pytest.raises(ModelError, match="no reward_mean and reward_std"):
        rewards({"name": "rm", "models": [members[0], bare]})


def test_average_refuses_another_shape(tmp_path: Path, members: list[str]) -> None:
    from tests.support.models import tiny

    wide = tmp_path / "wide"
    tiny("llama", intermediate_size=48).save_pretrained(wide)
    tokenizer().save_pretrained(wide)
    other = reward_folder(tmp_path / "rm", wide)
    with pytest.raises(ModelError, match="equal shapes"):
        rewards({"name": "rm", "models": [members[0], str(other)], "combine": "average"})


def test_the_slope_on_length_is_taken_out_and_kept(members: list[str]) -> None:
    spec = {"name": "rm", "model": members[0], "residual_length": True}
    uninterrupted = rewards(spec)
    first, second = talk(0), talk(1)
    uninterrupted(first)
    lengths = np.array([len(c) for g in first for c in g.completions], float)
    slope = np.polyfit(lengths, got(first, "rm"), 1)[0]
    near(slope, 0.0, 1e-6)
    assert abs(np.polyfit(lengths, got(first, "rm/with_length"), 1)[0]) > 1e-4
    near(np.mean(got(first, "rm")), np.mean(got(first, "rm/with_length")), 1e-6)
    resumed = rewards(spec)
    resumed.load(uninterrupted.state())
    uninterrupted(second)
    again = talk(1)
    resumed(again)
    assert got(again, "rm") == got(second, "rm")
    fresh = talk(1)
    rewards(spec)(fresh)
    assert got(fresh, "rm") != got(second, "rm")


@given(
    st.lists(st.tuples(st.integers(0, 500), st.floats(-50, 50)), min_size=2, max_size=30),
    st.integers(1, 29),
)
def test_a_running_fit_does_not_depend_on_the_batches(
    rows: list[tuple[int, float]], cut: int
) -> None:
    x, y = [float(a) for a, _ in rows], [b for _, b in rows]
    once, twice = RunningFit(), RunningFit()
    once.add(x, y)
    twice.add(x[:cut], y[:cut])
    twice = RunningFit.load(twice.state())
    twice.add(x[cut:], y[cut:])
    assert twice.slope == pytest.approx(once.slope, abs=1e-6)
    assert twice.std_y == pytest.approx(once.std_y, abs=1e-6) or np.std(y) < 1e-6
    if np.std(x) > 0:
        assert once.slope == pytest.approx(float(np.polyfit(x, y, 1)[0]), abs=1e-6)
