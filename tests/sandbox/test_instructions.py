"""Instructions with constraints that a program checks."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from trimtab.sandbox.instruction_edits import demonstration
from trimtab.sandbox.instructions import (
    CONSTRAINTS,
    HELD_OUT_TOPICS,
    TOPICS,
    UNSEEN,
    all_satisfied,
    instructions,
    satisfied,
    share_satisfied,
)

CASES: list[tuple[dict[str, Any], str, str]] = [
    ({"type": "lowercase"}, "the moon is far.", "The moon is far."),
    ({"type": "uppercase"}, "THE MOON, 1969.", "THE MOON is far."),
    ({"type": "sentences", "n": 2}, "It is far. Is it cold?", "It is far, and it is cold."),
    ({"type": "sentences", "n": 2}, "It is far... Is it cold", "One. Two. Three."),
    ({"type": "most_words", "n": 8}, "The moon is far from here.", "The moon."),
    ({"type": "most_words", "n": 8}, "The moon is far from here.", "a b c d e f g h"),
    ({"type": "bullets", "n": 2}, "- far\n- cold\n", "Here you are:\n- far\n- cold"),
    ({"type": "bullets", "n": 2}, "- far\n\n- cold", "- far\n- cold\n- grey"),
    ({"type": "json", "keys": ["a", "b"]}, '{"a": 1, "b": [2]}', '{"a": 1}'),
    ({"type": "json", "keys": ["a", "b"]}, '{"b": 1, "a": ""}', 'Sure: {"a": 1, "b": 2}'),
    ({"type": "keywords", "words": ["far", "cold"]}, "Cold and FAR.", "Colder and far."),
    ({"type": "no_commas"}, "far and cold", "far, cold"),
    ({"type": "forbidden", "word": "is"}, "This moon.", "The moon is far."),
    ({"type": "starts", "text": "In short"}, "in short, it is far.", "It is far, in short"),
    ({"type": "ends", "text": "The end."}, "It is far. The end.", "The end. It is far."),
    ({"type": "quotes"}, '"It is far."', 'It is "far"'),
    ({"type": "exclamation"}, "It is far! It is cold!", "It is far. It is cold!"),
]


@pytest.mark.parametrize(("constraint", "right", "wrong"), CASES)
def test_each_type_tells_right_from_wrong(
    constraint: dict[str, Any], right: str, wrong: str
) -> None:
    assert satisfied(right, constraint)
    assert not satisfied(wrong, constraint)
    assert not satisfied(" ", constraint), "an empty completion satisfies nothing"


def test_every_type_has_a_case() -> None:
    assert {c["type"] for c, _, _ in CASES} == set(CONSTRAINTS)


def test_instructions_are_different_and_held_out_ones_are_about_other_topics() -> None:
    train, held_out = instructions(400, seed=0), instructions(120, seed=0, held_out=True)
    assert train == instructions(400, seed=0) != instructions(400, seed=1)
    texts = [r["prompt"][0]["content"] for r in train]
    assert len({*texts, *(r["prompt"][0]["content"] for r in held_out)}) == 520
    assert not any(t in text for text in texts for t in TOPICS[-HELD_OUT_TOPICS:])
    kinds = {c["type"] for r in train for c in r["constraints"]}
    assert kinds == set(CONSTRAINTS) - set(UNSEEN)
    assert {c["type"] for r in held_out for c in r["constraints"]} == set(CONSTRAINTS)
    assert all(
        "{" not in str(r["prompt"][0]["content"]) and len(r["constraints"]) in (1, 2) for r in train
    )
    families = [[CONSTRAINTS[c["type"]].family for c in r["constraints"]] for r in train]
    assert all(len(set(f)) == len(f) for f in families)


def test_the_rewards_count_constraints() -> None:
    of_row = [{"type": "lowercase"}, {"type": "no_commas"}]
    texts = ["far and cold", "far, cold", "Far, cold"]
    rows = {"completions": texts, "constraints": [of_row] * 3}
    assert share_satisfied(**rows) == [1.0, 0.5, 0.0]
    assert all_satisfied(**rows) == [1.0, 0.0, 0.0]


TEXT = (
    "Honey bees are small insects that live in hives, and they make honey. They visit flowers to "
    "collect nectar. Bees also help plants grow by moving pollen. Without them many fruits would be rare."
)


def test_a_demonstration_satisfies_its_constraints_in_the_words_of_the_text() -> None:
    rng = np.random.default_rng(0)
    rows = [demonstration("Describe honey bees.", "honey bees", TEXT, rng) for _ in range(200)]
    assert all(row is not None for row in rows)
    seen: set[str] = set()
    for row in rows:
        assert row is not None
        text = row["completion"][0]["content"]
        assert row["prompt"][0]["content"].startswith("Describe honey bees. ")
        assert all(satisfied(text, c) for c in row["constraints"])
        assert {"honey", "bees", "flowers"} & set(re.findall(r"\w+", text.lower()))
        seen |= {c["type"] for c in row["constraints"]}
    assert seen == set(CONSTRAINTS) - set(UNSEEN)


def test_a_text_that_fits_no_constraint_gives_no_demonstration() -> None:
    assert demonstration("Describe it.", "it", "no end", np.random.default_rng(0)) is None
