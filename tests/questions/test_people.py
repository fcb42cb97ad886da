"""People on arrays judge as the sandbox's annotators do."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.questions import label_value, people
from trimtab.questions.people import Panel
from trimtab.sandbox.annotators import Annotator
from trimtab.sandbox.world import make_scenes, sample_completion

DRAWS = 3000


def pair() -> tuple[object, str, str]:
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
    chosen = people.choose(u * full, v * full, careless * full, rng).mean()
    assert chosen == pytest.approx(person.prob(scene, a, b), abs=4 * 0.5 / DRAWS**0.5)
    own = people.rate(u * full, 1.0 * full, careless * full, 7, rng)
    theirs = np.array([person.rate(scene, a, rng) for _ in range(DRAWS)])
    for level in range(1, 8):
        assert (own == level).mean() == pytest.approx((theirs == level).mean(), abs=0.05)


def test_ranks_are_plackett_luce() -> None:
    utility = np.tile([[1.0, 0.0, -0.5]], (DRAWS, 1))
    ranks = people.rank(utility, np.random.default_rng(3))
    first = (ranks == 0).mean(0)
    expected = np.exp([1.0, 0.0, -0.5]) / np.exp([1.0, 0.0, -0.5]).sum()
    assert first == pytest.approx(expected, abs=0.04)


def test_zeros_differ_or_wander_as_the_panel_says() -> None:
    who, rng = people.turns(30_000), np.random.default_rng(4)
    assert np.unique(Panel("gaps", gap=2.0).zeros(who, rng)).tolist() == [-2.0, 0.0, 2.0]
    assert not Panel("none").zeros(who, rng).any()
    zeros = Panel("drift", spread=2.0, memory=100.0).zeros(who, rng)[::3]
    assert zeros.std() == pytest.approx(2.0, abs=0.3)
    later = np.corrcoef(zeros[:-100], zeros[100:])[0, 1]
    assert later == pytest.approx(np.exp(-1), abs=0.15)
    tired = Panel("fatigue", most=0.4, session=100).carelessness(who)
    assert tired[:3].tolist() == [0.0, 0.0, 0.0]
    assert tired[297] == pytest.approx(0.396) and tired[300] == 0.0


def test_bits_of_a_verdict() -> None:
    """A verdict that is always right is one bit, a coin flip or a tie none; ties lose their share."""
    sums = np.array([[1.0, 0.0, 1.0], [0.5, 0.0, 1.0], [0.0, 1.0, 1.0], [0.5, 0.5, 1.0]])
    assert label_value.bits(sums) == pytest.approx([1.0, 0.0, 0.0, 0.5])


def test_a_budget_buys_what_fits() -> None:
    clock = label_value.Clock(words_per_s=4.0, decide_s=3.0)
    seconds = clock.seconds([8, 8, 8, 8], 1)
    assert seconds.tolist() == [5.0] * 4
    assert label_value.affordable(seconds, 10 / 60) == 2
    assert label_value.affordable(seconds, 9.9 / 60) == 1
    assert label_value.affordable(seconds, 1 / 60) == 1
