"""Different completions, good ones, and means by column: by hand, against enumeration, end to end."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trimtab
from tests.support import folders
from trimtab.cli.main import main as cli
from trimtab.config import build
from trimtab.datagen.sandbox_data import prompt_rows
from trimtab.errors import ConfigError, DataError
from trimtab.evaluate.compare import CompareConfig
from trimtab.evaluate.completion_counts import different_at, expected_different, passes, scores_by
from trimtab.sandbox.world_spec import WorldSpec
from trimtab.types import Completion, Group, Score

BASE = str(Path(trimtab.__file__).parent / "sandbox" / "base")


def group(texts: str, scores: list[float | None], **extra: object) -> Group:
    completions = [
        Completion(np.array([3]), np.ones(1, bool), t, scores={"gold": Score(s)})
        for t, s in zip(texts, scores, strict=True)
    ]
    return Group("g", np.array([1]), completions, "", dict(extra))


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=6), st.data())
def test_the_estimate_is_the_mean_over_all_subsets(texts: list[str], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(texts)))
    subsets = list(itertools.combinations(texts, k))
    mean = np.mean([len(set(s)) for s in subsets])
    assert expected_different(texts, len(texts), k) == pytest.approx(mean)


def test_good_ones_by_hand() -> None:
    groups = [group("aabc", [1.0, 1.0, 0.2, 1.0]), group("aaaa", [None, 0.0, 0.0, 0.0])]
    assert different_at(groups, 4).value == pytest.approx((3 + 1) / 2)
    good = different_at(groups, 4, lambda x: passes(x, "gold", 1.0))
    assert good.value == pytest.approx((2 + 0) / 2)
    # Two of four: "a" is drawn with 1 - C(2,2)/C(4,2) = 5/6, "c" with 1/2.
    good = different_at(groups[:1], 2, lambda x: passes(x, "gold", 1.0))
    assert good.value == pytest.approx(5 / 6 + 1 / 2)
    with pytest.raises(DataError):
        different_at(groups, 5)


def test_means_by_column_by_hand() -> None:
    groups = [
        group("ab", [1.0, 0.0], kind="open"), group("ab", [None, 1.0], kind="open"),
        group("ab", [0.5, 0.5], kind="ask"), group("a", [None]),
    ]  # fmt: skip
    result = scores_by(groups, "kind", ["gold"])
    assert {k: e["gold"].value for k, e in result.items() if e} == {
        "open": pytest.approx(2 / 3), "ask": 0.5,
    }  # fmt: skip
    assert result[""] == {}


def test_as_a_command(tmp_path: Path) -> None:
    """Abstentions and gold by kind, and different good completions of open prompts."""
    spec = WorldSpec(kinds=("open", "silent"))
    folders.write(tmp_path / "p.jsonl", prompt_rows(list(spec.scenes(8, 0))))
    cli(["compare", "--models", f"{{base: {{path: {BASE}}}}}", "--data", str(tmp_path / "p.jsonl"),
         "--out", str(tmp_path / "o"), "--device", "cpu", "--num_completions", "4",
         "--different_at", "[2, 4]", "--by", "kind", "--html", "false", "--sampling.max_new_tokens",
         "16", "--rewards", "[{name: gold, function: 'trimtab.sandbox.gold:gold_reward'}, {name: unknown, "
         "function: 'trimtab.sandbox.gold:unknown_reward'}]"])  # fmt: skip
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())["base"]
    assert set(summary["by"]) == {"open", "silent"}
    assert summary["by"]["silent"]["unknown"]["mean"] > summary["by"]["open"]["unknown"]["mean"]
    assert 1 <= summary["different@2"]["mean"] <= summary["different@4"]["mean"] <= 4
    for k in (2, 4):
        good = summary[f"different_good@{k}"]["mean"]
        assert 0 <= good <= summary[f"different@{k}"]["mean"]


def test_more_different_ones_than_completions_are_refused() -> None:
    reward = {"name": "wordy", "function": "tests.support.folders:wordy"}
    values = {"models": {"a": {"path": "x"}}, "data": "x", "rewards": [reward]}
    with pytest.raises(ConfigError, match="different_at"):
        build(CompareConfig, {**values, "num_completions": 4, "different_at": [8]})
