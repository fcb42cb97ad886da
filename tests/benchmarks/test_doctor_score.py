"""The doctor's benchmark counts evenly: what shows that a plant took, and both ways of counting."""

from __future__ import annotations

from typing import Any

from benchmarks.doctor.plan import RECIPES, REPORTED, TUNING, Spec, specs
from benchmarks.doctor.run import symptoms
from benchmarks.doctor.score import Result, figures, happened, strict


def _row(step: int, prompt: str, text: str) -> dict[str, Any]:
    return {"step": step, "id": prompt, "completion": text}


def test_symptoms_are_read_off_the_answers() -> None:
    late = [
        _row(1, "a", "The cat ."), _row(1, "a", "the  cat ."), _row(1, "a", "the the dog"), _row(1, "a", "no"),
        _row(2, "a", "no"), _row(2, "a", "no"),
    ]  # fmt: skip
    found = symptoms(late, {"template": "no", "word": "the"})
    assert found == {"template": 3 / 6, "word": 4 / 6, "same": 4 / 6}
    assert symptoms(late, {}) == {"same": 4 / 6}
    assert symptoms([_row(1, "a", "x"), _row(1, "b", "y")], {}) == {"same": 0.0}, "asked once each"


def test_plants_that_did_not_take_can_be_counted_as_misses() -> None:
    def run(alarm: int, found: tuple[int, ...], weak: int = 0) -> Result:
        also = frozenset({weak} - {0})
        return Result("k", "fault", alarm, "all", "r", found, found, also, frozenset({alarm}), weak)

    runs = [run(8, (8,)), run(0, (), weak=8), run(0, (8,), weak=8)]
    plain, every = (figures(x, 8, lambda r: r.rang) for x in (runs, strict(runs)))
    assert (plain["runs"], plain["hits"], plain["false_alarms"]) == (1, 1, 0)
    assert (every["runs"], every["hits"], every["false_alarms"]) == (3, 2, 0)
    assert all(8 in r.causes for r in strict(runs))


def test_no_two_recipes_are_one_configuration() -> None:
    told = [
        (r.stage, r.kinds, str(r.config), r.plant, str(r.options), r.pool, str(r.data))
        for r in RECIPES
    ]
    assert len(set(told)) == len(told)


def test_reported_seeds_are_not_tuned_on_and_every_third_is_held_out() -> None:
    assert not set(REPORTED) & set(TUNING)
    named = {r.name: r for r in RECIPES}
    assert [Spec(named["grpo"], s).task == "tell" for s in range(70, 75)] == [
        s % 3 == 0 for s in range(70, 75)
    ]
    one = named["one-template"]
    assert Spec(one, 72).config is one.held_out and Spec(one, 73).config is one.config
    assert Spec(named["ppo"], 72).task == named["ppo"].kinds, (
        "some recipes have prompts of their own"
    )
    assert len({s.key for s in specs(REPORTED)}) == 45 * len(REPORTED)


def test_what_happened_is_told_by_what_the_doctor_does_not_read() -> None:
    level = [0.8, 0.81, 0.79] * 7
    fall = [*level[:10], *(x - 0.4 for x in level[10:])]
    rise = [0.1 * i for i in range(21)]
    told: dict[str, Any] = {
        "gold": level,
        "proxy": rise,
        "kl": [1.0] * 21,
        "same": 0.3,
        "below": 0.1,
    }
    assert happened(told, 6.0) == set()
    assert happened(told | {"gold": fall}, 6.0) == {1}
    assert happened(told | {"gold": fall, "proxy": rise[::-1], "kl": [20.0] * 21}, 6.0) == {2}
    assert happened(told | {"kl": [20.0] * 21}, 6.0) == set(), "a planned shift"
    assert happened(told | {"kl": [20.0] * 21, "gold": fall, "proxy": rise[::-1]}, 12.0) == set()
    assert happened(told | {"same": 0.9}, 6.0) == set(), "solved"
    assert happened(told | {"same": 0.9, "below": 0.6}, 6.0) == {7}
    assert happened({"held_out_shift": -9.0}, 6.0) == {17}
    assert happened({"held_out_shift": -3.0}, 6.0) == set()
