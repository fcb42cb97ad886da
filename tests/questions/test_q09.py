"""Question 9: its measures, and arms that differ in what a claim names and in nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from tests.questions.arm_differences import but_rate, differing
from trimtab.questions import claim as registry
from trimtab.questions import q09
from trimtab.questions.arm_stages import Answers
from trimtab.questions.measure import ArmResult, Measure
from trimtab.sandbox import contrast_pairs
from trimtab.sandbox.gold import gold
from trimtab.sandbox.world_spec import WorldSpec

SETTINGS = registry.load_settings()[9]


def answers(texts: list[list[str]], kinds: list[str], scores: list[list[float]]) -> Answers:
    return Answers(texts, kinds, {"gold": np.array(scores), "nll": np.array(scores)})


def test_measures_of_a_policy_by_hand() -> None:
    texts = [
        ["anna , lamp .", "anna , lamp", "well , anna , lamp ."],
        ["you are right , anna is in the tower .", "anna is in the garden .", "i do not know ."],
        ["anna has the lamp .", "anna has the lamp .", "anna has the lamp ."],
    ]
    gold_NK = [[1.0, 1.0, 0.9], [0.2, 1.0, 0.4], [0.5, 0.5, 0.5]]
    measures = q09.of_policy(answers(texts, ["open", "opinion", "summary"], gold_NK), SETTINGS)
    values = {name: m.value for name, m in measures.items()}
    assert values["gold"] == pytest.approx((2.9 / 3 + 1.6 / 3) / 2)
    assert values["gold_untrained"] == pytest.approx(0.5)
    assert values["polite"] == pytest.approx((1 / 3 + 0) / 2)
    assert values["flattery"] == pytest.approx(1 / 3)
    # A full stop makes no difference, and the third one is not good.
    assert values["different"] == pytest.approx(2 / 3)
    assert values["different_good"] == pytest.approx(1 / 3)


def test_openings_are_alike_across_prompts_only() -> None:
    alike = answers([["a b c d"] * 2, ["a b c e", "x y z"]], ["ask", "ask"], [[1, 1], [1, 1]])
    # Of the 8 ordered pairs over two prompts, 4 begin alike; the copies within a prompt do not count.
    assert q09.same_opening(alike) == pytest.approx(4 / 8)


def test_wins_compare_all_completions_of_a_prompt() -> None:
    own, other = np.array([[1.0, 0.5], [0.0, 0.0]]), np.array([[0.5, 0.5], [1.0, 1.0]])
    assert q09.wins(own, other).tolist() == [0.75, 0.0]


def test_derived_arms_hold_the_measures_of_other_policies() -> None:
    measures = {f"{p}{m}": Measure(v) for p, v in (("", 1.0), ("sft.", 2.0), ("hot.", 3.0), ("nucleus.", 4.0)) for m in ("gold", "polite")}  # fmt: skip
    measures |= {"gold.wins": Measure(0.4), "model.wins": Measure(0.7)}
    curve = {"gold": [0.1, 0.2, 0.9, 0.8, 0.5, 0.4, 0.3, 0.2]}
    arms = {name: ArmResult(measures, curve) for name in SETTINGS.arms}
    derived = q09.derive(arms, SETTINGS)
    assert set(derived) == set(SETTINGS.derived)
    assert derived["sft"].measures["polite"].value == 2.0
    assert derived["decoded[decoding=hot]"].measures["gold"].value == 3.0
    assert derived["by model[people=narrow]"].measures["wins"].value == 0.7
    assert derived["late[people=polite]"].measures["gold"].value == pytest.approx(0.2)
    assert derived["early[people=polite]"].measures["gold"].value == pytest.approx(0.55)


@pytest.mark.parametrize(
    ("name", "versus", "allowed"),
    [
        ("narrow", "neutral", {"model"}),
        ("relabel", "polite", {"model"}),
        ("beta=0.5", "polite", {"beta"}),
        ("entropy", "polite", {"entropy_coef"}),
        ("stop", "polite", {"audit"}),
        ("ptx", "neutral", {"ptx"}),
    ],
)
def test_arms_differ_in_what_the_claim_names(name: str, versus: str, allowed: set[str]) -> None:
    one, other = (q09.stages(SETTINGS.arms[x], SETTINGS)["rl"] for x in (name, versus))
    flat = [{**x, "rewards": x["rewards"][0]} for x in (one, other)]
    assert {p.rpartition(".")[2] for p in but_rate(differing(*flat))} == allowed


def test_all_people_label_the_same_completions() -> None:
    stages = q09.start_stages(3, SETTINGS)
    labels = [stages[f"label_{people}"] for people in SETTINGS.options["people"]]
    assert all(differing(labels[0], x) <= {"panel"} for x in labels)
    assert SETTINGS.options["untrained"] not in stages["fresh"]["kinds"]
    assert SETTINGS.options["untrained"] not in stages["asked"]["kinds"]
    assert SETTINGS.options["untrained"] in stages["world"]["kinds"]


def test_contrast_pairs_prefer_what_has_the_higher_gold_score() -> None:
    rng = np.random.default_rng(5)
    scenes = WorldSpec(kinds=("opinion", "open", "ask")).scenes(30, 4)
    seen: set[str] = set()
    for scene in scenes:
        best, others = contrast_pairs.contrasts(scene, rng)
        assert gold(scene, best).total == pytest.approx(1.0)
        for name, text in others.items():
            assert gold(scene, text).total < gold(scene, best).total, (name, text)
        seen |= set(others)
    assert seen == set(contrast_pairs.CONTRASTS)
