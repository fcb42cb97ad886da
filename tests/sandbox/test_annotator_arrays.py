"""Annotators on arrays judge as single annotators do."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.sandbox import annotator_arrays as arrays
from trimtab.sandbox.annotator_arrays import Condition
from trimtab.sandbox.annotators import Annotator
from trimtab.sandbox.world import Scene, make_scenes, sample_completion

DRAWS = 3000


def pair() -> tuple[Scene, str, str]:
    scene = make_scenes(1, 5)[0]
    rng = np.random.default_rng(1)
    texts = {sample_completion(scene, rng) for _ in range(30)}
    ordered = sorted(texts, key=lambda t: Annotator("a").utility(scene, t))
    return scene, ordered[-1], ordered[-2]


@pytest.mark.parametrize("careless", [0.0, 0.3])
def test_choices_and_scores_have_the_annotators_distribution(careless: float) -> None:
    scene, a, b = pair()
    person = Annotator("person", carelessness=careless, severity=1.0)
    u, v = (person.utility(scene, x) for x in (a, b))
    rng, full = np.random.default_rng(2), np.full(DRAWS, 1.0)
    chosen = arrays.choose(u * full, v * full, careless * full, rng).mean()
    assert chosen == pytest.approx(person.prob(scene, a, b), abs=4 * 0.5 / DRAWS**0.5)
    condition = Condition.of([person], np.zeros(DRAWS, np.int64))
    scores = arrays.rate(u * full, condition, person.scale, 7, rng)
    singly = np.array([person.rate(scene, a, rng) for _ in range(DRAWS)])
    for level in range(1, 8):
        assert (scores == level).mean() == pytest.approx((singly == level).mean(), abs=0.05)


def test_ranks_are_plackett_luce() -> None:
    utility = np.tile([[1.0, 0.0, -0.5]], (DRAWS, 1))
    ranks = arrays.rank(utility, np.random.default_rng(3))
    expected = np.exp([1.0, 0.0, -0.5]) / np.exp([1.0, 0.0, -0.5]).sum()
    assert (ranks == 0).mean(0) == pytest.approx(expected, abs=0.04)


def test_each_member_drifts_and_tires_with_its_own_labels() -> None:
    panel = [
        Annotator("a", severity=1.0, drift=0.1),
        Annotator("b", carelessness=0.2, fatigue=0.05, break_every=3),
    ]
    who = arrays.turns(panel, 9)
    assert who.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    condition = Condition.of(panel, who)
    items = np.arange(9) // 2
    singly = [panel[member].after(int(n)) for member, n in zip(who, items, strict=True)]
    assert condition.severity_N == pytest.approx([p.severity for p in singly])
    assert condition.carelessness_N == pytest.approx([p.carelessness for p in singly])
    assert condition.severity_N[::2] == pytest.approx([1.0, 1.1, 1.2, 1.3, 1.4])
    assert condition.carelessness_N[1::2] == pytest.approx([0.2, 0.25, 0.3, 0.2])
    assert condition.repeat(2).severity_N[:4] == pytest.approx([1.0, 1.0, 0.0, 0.0])
