"""Question 11: arms differ only in the part that a claim names; its measures on small numbers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.questions.arm_differences import but_rate, differing
from tests.questions.arm_differences import resolved as resolved_stages
from trimtab.questions import claim as registry
from trimtab.questions import q11


def resolved(arm: str) -> dict[str, Any]:
    settings = registry.load_settings()[11]
    plan = q11.stages(settings.arms[arm], settings)
    return resolved_stages({"rl": plan["rl"]})["rl"]


CHANGES = {
    "no-kl": {"method.kl.place"},
    "clip": {"method.clip.high"},
    "overlong": {"method.length.overlong", "method.length.mask_truncated"},
    "token": {"method.aggregation"},
    "filter": {"method.filter.dynamic_sampling", "method.filter.max_tries"},
}


@pytest.mark.parametrize("where", ["mixed", "plain"])
@pytest.mark.parametrize("part", CHANGES)
def test_a_part_changes_itself_and_nothing_else(part: str, where: str) -> None:
    changed = differing(resolved(f"{part}[where={where}]"), resolved(f"grpo[where={where}]"))
    assert but_rate(changed) == CHANGES[part]


def test_dapo_is_all_parts_and_each_row_adds_one() -> None:
    rows = [
        "grpo",
        "no-kl",
        "no-kl+clip",
        "no-kl+clip+overlong",
        "no-kl+clip+overlong+token",
        "dapo",
    ]
    arms = [resolved(f"{name}[where=mixed]") for name in rows]
    for before, after, part in zip(arms[:-1], arms[1:], CHANGES, strict=True):
        assert but_rate(differing(before, after)) == CHANGES[part]
    assert but_rate(differing(arms[0], arms[-1])) == set().union(*CHANGES.values())
    assert but_rate(differing(arms[-1], resolved("dapo[where=plain]"))) <= {
        "data.path", "sampling.max_new_tokens", "method.updates.minibatches",
    }  # fmt: skip


def test_where_a_part_can_act_and_where_it_cannot() -> None:
    mixed, plain = resolved("grpo[where=mixed]"), resolved("grpo[where=plain]")
    assert mixed["method"]["updates"]["minibatches"] == 16
    assert plain["method"]["updates"]["minibatches"] == 1
    # Six steps have 51 tokens with the end token, two have 19.
    assert mixed["sampling"]["max_new_tokens"] < 51 and plain["sampling"]["max_new_tokens"] > 19


def test_replay_differs_from_grpo_in_the_routing_alone() -> None:
    replay, grpo = resolved("grpo+replay[model=mixture]"), resolved("grpo[model=mixture]")
    assert but_rate(differing(replay, grpo)) == {"routing"}
    gspo = but_rate(differing(resolved("gspo[model=mixture]"), grpo))
    assert {n for n in gspo if not n.startswith("method.kl")} == {
        "method.type", "method.ratio", "method.clip.low", "method.clip.high",
    }  # fmt: skip
    assert (
        resolved("gspo[model=mixture]")["method"]["kl"]["place"]
        == "none"
        == grpo["method"]["kl"]["place"]
    )


def test_the_weight_of_long_completions() -> None:
    lengths = [11, 19, 27, 35, 43, 11, 19, 50]
    assert q11.long_share(lengths, by_token=False) == 0.25
    assert q11.long_share(lengths, by_token=True) == pytest.approx(93 / 215)
    assert q11.long_share([19] * 8, by_token=True) == pytest.approx(0.25)
