"""Questions 2 and 4: the measures of reward models, and arms that differ in what a claim names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.questions.arm_differences import but_rate, differing
from trimtab.questions import chain, q02, q04, reward_measures
from trimtab.questions.claim import load_settings

SETTINGS = {2: load_settings()[2], 4: load_settings()[4]}
START = Path("start")


def rl(name: str) -> dict[str, Any]:
    return q02.stages(SETTINGS[2].arms[name], SETTINGS[2], START)["rl"]


def learned(name: str) -> dict[str, Any]:
    return q04.policy_stages(SETTINGS[4].arms[name], SETTINGS[4], START)["rl"]


def test_the_surer_half_is_split_within_a_bin() -> None:
    one = {"confidence": 0.7, "accuracy": 0.6, "count": 30}
    two = {"confidence": 0.9, "accuracy": 1.0, "count": 10}
    # Surer half: all of the second bin and a third of the first.
    assert reward_measures.surer([two, one]) == pytest.approx((10 + 10 * 0.6) / 20 - 0.6)
    assert reward_measures.surer(
        [{"confidence": 0.8, "accuracy": 0.7, "count": 8}]
    ) == pytest.approx(0.0)


def test_what_is_kept_allows_for_the_ceiling() -> None:
    """Half of what labels allow on both sets is nothing lost, though the accuracies differ."""
    sets = {"old": {"accuracy": 0.72, "ceiling": 0.8}, "new": {"accuracy": 0.54, "ceiling": 0.6}}
    assert reward_measures.share_kept(sets, "new", "old") == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("other", "paths"),
    [
        ("rl[start=base]", {"model.path"}),
        ("rl[start=random]", {"model.path", "model.tokenizer"}),
        ("rl[start=few]", {"model.path"}),
        ("rl[prompts=labelled]", {"data.path"}),
    ],
)
def test_starts_and_prompts_differ_and_nothing_else(other: str, paths: set[str]) -> None:
    """But for the learning rate, which each arm has of its own."""
    assert but_rate(differing(rl("rl[start=sft]"), rl(other))) == paths


def test_few_demonstrations_make_as_many_updates() -> None:
    few = q02.few_part(SETTINGS[2]).stages["sft"]
    everything = SETTINGS[2].sizes["demonstrations"] * chain.sft_stage("")["epochs"]
    assert few["epochs"] * few["data"]["limit"] == everything


@pytest.mark.parametrize(
    ("other", "paths"),
    [
        ("reward[labels=3000]", {"rewards", "critic.model.path"}),
        ("init=sft", {"rewards", "critic.model.path"}),
        ("flawed", {"rewards", "critic.model.path"}),
        ("halved", {"rewards"}),
    ],
)
def test_policies_differ_in_their_reward_model(other: str, paths: set[str]) -> None:
    one, two = learned("reward[labels=1000]"), learned(other)
    assert but_rate(differing(one, two)) == paths
    changed = differing(one["rewards"][0], two["rewards"][0])
    assert changed == ({"weight"} if other == "halved" else {"model"})
    assert one["rewards"][1] == two["rewards"][1]


def test_reward_models_differ_in_start_or_labels() -> None:
    def stage(name: str) -> Any:
        return q04.reward_part(SETTINGS[4].arms[name], SETTINGS[4]).stages["reward"]

    assert differing(stage("reward[labels=1000]"), stage("init=sft")) == {"model.path"}
    assert differing(stage("reward[labels=1000]"), stage("reward[labels=3000]")) == {"data.limit"}


def test_numbers_of_labels_scale_with_the_size() -> None:
    sizes = SETTINGS[4].scaled(0.1).sizes
    assert [chain.rows_of(n, sizes) for n in (100, 300, 3000)] == [chain.FEWEST_ROWS, 30, 300]
