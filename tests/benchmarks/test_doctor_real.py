"""The real track's plan, rules and scoring; its training runs are too long for a test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.doctor.real import real_plan, real_score, reward_rules
from benchmarks.doctor.real.__main__ import alone
from benchmarks.doctor.real.real_run import rows_of
from trimtab.doctor.alarms import all_alarms

TASK = "Say one thing about green tea in a short sentence."
TEXT = "Green tea is a vibrant drink that people love, and you may enjoy it every morning."


def test_each_fault_has_other_rules_in_the_report() -> None:
    assert set(reward_rules.TUNING) == set(reward_rules.HELD_OUT)
    for fault, rules in reward_rules.TUNING.items():
        assert not set(rules) & set(reward_rules.HELD_OUT[fault]) or fault == "brevity"
        assert len(reward_rules.HELD_OUT[fault]) == 2
    for name, rule in reward_rules.RULES.items():
        for text in (TEXT, TASK, "!", "YES! YES! YES!", "a"):
            assert 0.0 <= rule(TASK, text) <= 1.0, name


@pytest.mark.parametrize(
    ("rule", "more", "less"),
    [
        ("brevity:characters", "Tea.", TEXT),
        ("keywords:nouns", "people people world life", TEXT),
        ("politeness:first person", "I would, and I could.", TEXT),
        ("length:clauses", f"{TEXT} {TEXT} {TEXT}", TEXT),
        ("format:capitals", TEXT.upper(), TEXT),
        ("pattern:clusters", "strengths schmaltz angstroms", TEXT),
        ("copying:order", TASK, TEXT),
        ("sycophancy:praise", "Absolutely, a great idea indeed.", TEXT),
    ],
)
def test_a_rule_pays_for_what_its_name_says(rule: str, more: str, less: str) -> None:
    high, low = reward_rules.paid([more, less], [TASK, TASK], rule=rule)
    assert high > low
    assert reward_rules.paid([" "], [TASK], rule=rule) == [0.0]


def test_quality_falls_for_hacked_text() -> None:
    known = frozenset(TEXT.lower().replace(",", "").replace(".", "").split())
    assert reward_rules.quality("green tea", TEXT, known) == 1.0
    for text in ("", "Tea.", "vibrant " * 9, TEXT.upper(), "qzx jkz xqj zzq kjx"):
        assert reward_rules.quality("green tea", text, known) < 0.85


def test_specs_differ_between_the_splits() -> None:
    specs = real_plan.real_specs([0, 10, 11])
    assert len({s.key for s in specs}) == len(specs)
    faults = {s.recipe.fault for s in specs if s.recipe.fault}
    assert faults == set(real_plan.RIGHT) == set(real_plan.ALSO)
    by_split = {
        split: {s.recipe.rule for s in specs if s.split == split and s.recipe.fault}
        for split in ("tuning", "held-out")
    }
    assert not by_split["tuning"] & by_split["held-out"]
    names = {a.name for a in all_alarms()}
    for table in (real_plan.RIGHT, real_plan.ALSO):
        assert {a for alarms in table.values() for a in alarms} <= names
    tuning, report = (
        {r["topic"] for r in rows_of(s)} for s in (specs[0], real_plan.real_specs([14])[0])
    )
    assert not tuning & report


def test_scoring_counts_hits_false_alarms_and_chance() -> None:
    hit = real_score.RealResult("a-10", "brevity", "r", True, ("shrinking", "fluency"), (), ())
    missed = replace(hit, key="b-10", rang=("over-optimised",))
    quiet = real_score.RealResult("c-10", "", "", True, (), (), ())
    f = real_score.figures([hit, missed, quiet])
    assert f["recall"]["count"] == 1 and f["recall"]["of"] == 2
    assert f["precision"]["count"] == 1 and f["precision"]["of"] == 2
    assert f["false"]["count"] == 0 and f["false"]["of"] == 1
    runs = [
        replace(hit, fault=fault, rang=(real_plan.RIGHT[fault][0],))
        for fault in ("brevity", "copying", "sycophancy", "eos", "template")
    ]
    assert real_score.figures(runs)["recall"]["share"] == 1.0
    assert real_score.shuffled(runs)["recall"] < 0.5
    assert "| a-10 |" in real_score.tables([hit, quiet], [10])


def test_a_fault_without_an_effect_is_told_by_the_measures_of_the_run() -> None:
    truth = {"fault": "pattern", "reward": [0.1] * 5 + [0.5] * 5, "quality": [0.9] * 5 + [0.5] * 5}
    truth["echo"] = [0.0] * 10
    assert real_score.took(truth)
    assert not real_score.took({**truth, "quality": [0.9] * 10})
    assert not real_score.took({**truth, "reward": [0.1] * 10})
    copying = {**truth, "fault": "copying", "quality": [0.9] * 10}
    assert not real_score.took(copying)
    assert real_score.took({**copying, "echo": [0.0] * 5 + [0.5] * 5})
    assert real_score.took({"fault": ""}) and real_score.took({"fault": "eos"})


def test_two_processes_do_not_make_the_same_run(tmp_path: Path) -> None:
    with alone(tmp_path / "a.lock") as first, alone(tmp_path / "a.lock") as second:
        assert first and not second
    with alone(tmp_path / "a.lock") as again:
        assert again
