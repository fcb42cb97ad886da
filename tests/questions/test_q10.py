"""Question 10: arms that differ in what a claim names and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.questions.arm_differences import but_rate, differing, flat, resolved
from trimtab.questions import q10
from trimtab.questions.claim import load_claims, load_settings

SETTINGS = load_settings()[10]
CLAIMS = {c.key: c for c in load_claims()[10]}


def stages(arm: str) -> Mapping[str, Mapping[str, Any]]:
    values = SETTINGS.arms.get(arm, SETTINGS.arms["grpo[epochs=1]"])
    return q10.stages(values, SETTINGS)


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("10.3a[beta=0.04]", {"method.kl.place", "method.kl.estimator"}),
        ("10.3a[beta=0.4]", {"method.kl.place", "method.kl.estimator"}),
        ("10.3c[beta=0.04]", {"method.kl.estimator"}),
        ("10.3d[beta=0.4]", {"method.kl.estimator"}),
        ("10.6b", {"method.updates.epochs"}),
        ("10.8a[rate=low]", {"method.group_size", "batch_size"}),
        ("10.8b[rate=medium]", {"method.group_size", "batch_size"}),
    ],
)
def test_arms_differ_in_what_the_claim_names_and_nothing_else(key: str, named: set[str]) -> None:
    keys = differing(*(resolved(stages(name)) for name in CLAIMS[key].arms))
    assert but_rate(keys) == {f"rl.{name}" for name in named}


def test_pass_rates_differ_in_the_start_alone() -> None:
    keys = differing(
        resolved(stages("group of 2[rate=low]")), resolved(stages("group of 2[rate=high]"))
    )
    assert but_rate(keys) == {"rl.model.path", "compare.models.sft.path"}


def test_all_arms_draw_equal_samples() -> None:
    for name in SETTINGS.arms:
        plan = flat(resolved(stages(name)))
        assert plan["rl.batch_size"] * plan["rl.method.group_size"] == 64
        assert plan["rl.steps"] == SETTINGS.sizes["steps"]


def test_starts_differ_in_the_share_of_wrong_steps_alone() -> None:
    low, high = (q10.further_stages(w, SETTINGS) for w in SETTINGS.options["wrong"].values())
    assert differing(resolved(low), resolved(high)) == {"tasks.wrong"}
